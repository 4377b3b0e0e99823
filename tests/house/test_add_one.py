"""What a user adds takes one place: a class of his own, and for the command line a file beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dforce
from dforce.cli.main import main
from dforce.data import save_episodes
from dforce.data.episodes import pack
from dforce.planning.evaluation import compare_methods, reference_methods

NETWORK = '''
import torch
from torch import nn


class Running(nn.Module):
    """The mean of the past, and a linear map of it and of the noisy token."""

    causal = recurrent = True

    def __init__(self, event_shape, *, static=None, token=None, width: int = 8):
        super().__init__()
        self.size = event_shape[0]
        self.net = nn.Sequential(nn.Linear(2 * self.size + 1, width), nn.SiLU(), nn.Linear(width, self.size))

    def init_state(self, batch, cond=None):
        return {"sum": torch.zeros(batch, self.size), "count": torch.zeros(batch, 1)}

    def absorb(self, x, label, state, cond=None):
        return {"sum": state["sum"] + x.sum(1), "count": state["count"] + x.shape[1]}

    def forward(self, x, label, state, cond=None):
        before = state["sum"][:, None] + x.cumsum(1) - x
        count = state["count"][:, None] + torch.arange(x.shape[1])[:, None]
        out = self.net(torch.cat([x, before / count.clamp(min=1), label[..., None].to(x.dtype)], -1))
        return out, self.absorb(x, label, state, cond)
'''


def test_a_network_is_a_class_and_a_file_of_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trust` names the package, `net=` the file: trained, saved and loaded like any other, and refused without."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "added_network.py").write_text(NETWORK)
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "running.yaml").write_text("_target_: added_network.Running\nwidth: 12\n")
    draw = np.random.default_rng(0)
    observations, actions = draw.normal(size=(6, 41, 3)), draw.normal(size=(6, 40, 2))
    save_episodes("added/walk-v0", pack([*observations], [*actions], [*np.zeros((6, 40))]))
    words = ["train", "--config-dir", str(tmp_path), "net=running", "data=added/walk-v0", "horizon=20", "batch=4",
             "fast_dev_run=true"]
    assert main([*words, "out=refused"]) == 2
    assert main([*words, "trust=added_network", "net.width=16", "out=run"]) == 0
    bundle = dforce.load("run", trust="added_network")
    assert type(bundle.denoiser.net).__name__ == "Running" and bundle.step == 20
    assert sum(p.numel() for p in bundle.denoiser.parameters()) == (2 * 50 + 1) * 16 + 16 + 16 * 50 + 50
    with pytest.raises(ValueError, match="outside dforce"):
        dforce.load("run")


class Corridor:
    """A point on a line from 0 to 1, moved by its action: a world without a maze, asked what `dforce.envs.Env` asks."""

    name, observation_width, action_width, goal_width, max_steps = "corridor", 1, 1, 1, 30
    gains, draw = (20.0, 0.0), None

    def copies(self, n: int) -> Corridor:
        return self

    def begin(self, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
        self.x, self.goal = start.copy(), goal
        return self.x

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.x = np.clip(self.x + 0.05 * action, 0, 1)
        return self.x, self.arrived(self.x, self.goal).astype(float)

    def position(self, observation: np.ndarray) -> np.ndarray:
        return observation

    def arrived(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.abs(observation - goal)[..., 0] < 0.03

    def check(self, starts: np.ndarray, goals: np.ndarray) -> None:
        if ((starts < 0) | (starts > 1)).any():
            raise ValueError("a start lies outside the corridor")


def test_an_environment_is_a_class() -> None:
    """Drivers, executors, scores and intervals take it as it is."""
    starts, goals = np.linspace(0, 0.4, 12)[:, None], np.full((12, 1), 0.9)
    methods = reference_methods(Corridor())
    assert [method.name for method in methods] == ["random", "straight"]
    comparison = compare_methods(Corridor(), methods, starts, goals, task="corridor")
    success = {row["method"]: row["value"] for row in comparison.rows if row["metric"] == "success"}
    assert success["straight"] == 1.0 and success["random"] < 0.5
    assert len(comparison.episodes) == 24
    with pytest.raises(ValueError, match="outside the corridor"):
        compare_methods(Corridor(), methods, starts - 1, goals, task="corridor")
