"""What a user adds takes one place: a class of his own, and for the command line a file beside it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import dforce
from dforce.align import ask_reward
from dforce.align.rewards.protocol import Subject
from dforce.align.rewards.store import named_reward
from dforce.cli.main import main
from dforce.data import save_episodes
from dforce.data.episodes import pack
from dforce.planning.evaluation import compare_methods, reference_methods
from dforce.report.rows import read_results

ROOT = Path(__file__).resolve().parents[2]
LINES = 60  # of a module that adds one more of a kind

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


ALGORITHM = '''
"""Best of a pair: regression on the better of every two samples of a prompt."""

from dataclasses import dataclass

from dforce.align.algorithms.common import Algorithm, Setup, on_policy
from dforce.align.loop import Aligning
from dforce.align.objectives import regression


@dataclass(frozen=True, kw_only=True)
class BestOfPair(Algorithm):
    name = "best_of_pair"
    group: int = 2
    updates: int = 2
    weight: float = 2.0

    def prepare(self, setup: Setup) -> Aligning:
        def better(reward, prompts, group):
            pairs = reward.view(-1, 2)
            return (self.weight * (pairs >= pairs.amax(1, keepdim=True))).flatten()

        return on_policy(self, setup, regression(), better, updates=self.updates, traces=False)
'''

REWARD = '''
"""Redness: the mean of the first channel over that of all, watched by nothing."""

from dforce.align.rewards.protocol import Subject, Watched

BUILDABLE = ("redness",)


def redness(subject: Subject, *, scale: float) -> Watched:
    if subject.shape[0] != 3:
        raise ValueError("redness is of images with three channels")
    return Watched(lambda x, prompts, metadata: scale * (x[:, :, 0].flatten(1).mean(1) - x.flatten(1).mean(1)))
'''


@pytest.mark.slow
def test_an_algorithm_of_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                   capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pairing.py").write_text(ALGORITHM)
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm" / "best_of_pair.yaml").write_text(
        "_target_: pairing.BestOfPair\nsamples: 16\nweight: 2.0\n")
    words = ["align", "image", "--config-dir", str(tmp_path), "algorithm=best_of_pair", "trust=pairing", "steps=3",
             "fast_dev_run=true", "out=run", "device=cpu", "watch=0", "evaluate=0"]
    assert main([*words, "algorithm.weight=1.5"]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "STATUS").read_text() == "done\n"
    assert len(ALGORITHM.splitlines()) <= 60


def test_a_reward_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "dforce.align.rewards.redness"
    (tmp_path / "redness.py").write_text(REWARD)
    spec = importlib.util.spec_from_file_location(name, tmp_path / "redness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, name, module)
    (tmp_path / "image_reward").mkdir()
    (tmp_path / "image_reward" / "red.yaml").write_text(f"_target_: {name}.redness\n_partial_: true\nscale: 2.0\n")
    monkeypatch.setattr("dforce.config.nodes.files", lambda package: tmp_path)
    x = torch.zeros(2, 1, 3, 4, 4)
    x[1, :, 0] = 0.9
    watched = named_reward("red", Subject((3, 4, 4)))
    assert ask_reward(watched.tuned, x, ["a", "b"]).tolist() == pytest.approx([0.0, 1.2])
    with pytest.raises(ValueError, match="did you mean 'red'"):
        named_reward("rad", Subject((3, 4, 4)))
    assert len(REWARD.splitlines()) <= 60


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with the package in it as the wheel has it, envs and configs inside; what is compiled comes along."""
    shutil.copytree(ROOT / "dforce", tmp_path / "dforce")
    for inner in ("envs", "configs"):
        shutil.copytree(ROOT / inner, tmp_path / "dforce" / inner)
    return tmp_path


def add(tree: Path, files: dict[str, str]) -> None:
    """Adds new files to the package, the Python ones within the size that one more of a kind may have."""
    for name, text in files.items():
        file = tree / "dforce" / name
        assert not file.exists() and (file.suffix != ".py" or len(text.splitlines()) <= LINES)
        file.write_text(text, encoding="utf-8")


def run_command(tree: Path, *words: str) -> str:
    """Runs the command line of the copy in its folder; returns what it printed."""
    ran = subprocess.run([sys.executable, "-m", "dforce", *words], cwd=tree, text=True, capture_output=True,
                         env={**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


PLANNER = '''"""Straight to the goal."""

import numpy as np

from dforce.planning.control import Plan

BUILDABLE = ("Line",)


class Line:
    """planner(obs [N, O], goal [N, G], remaining, rng) -> Plan, as if there were no walls. pace: cells a step."""

    def __init__(self, pace: float = 0.02):
        self.pace = pace

    def __call__(self, obs, goal, remaining, rng):
        way = goal - obs[:, :2]
        share = self.pace * np.arange(1, remaining + 1) / np.linalg.norm(way, axis=1, keepdims=True)
        place = obs[:, None, :2] + np.minimum(share, 1)[..., None] * way[:, None]
        return Plan(np.zeros_like(place), np.concatenate([place, np.zeros_like(place)], -1))
'''


@pytest.mark.slow
def test_a_planner(tree: Path) -> None:
    add(tree, {"planning/line.py": PLANNER, "configs/planner/line.yaml":
               "# straight to the goal\n_target_: dforce.planning.line.Line\n_partial_: true\npace: 0.02\n"})
    assert "planner=best_of_n|diffuser|diffusion|line|mctd" in run_command(tree, "plan", "--help")
    run_command(tree, "plan", "checkpoint=maze2d-umaze", "planner=line", "planner.pace=0.03", "fast_dev_run=true",
           "pictures=1", "out=run")
    success = {(row["method"], row["variant"]["starts"]): row["value"]
               for row in read_results(tree / "run" / "results.json").rows if row["metric"] == "success"}
    assert success["Line", "all"] > 0 and success["Line", "blocked"] == 0
