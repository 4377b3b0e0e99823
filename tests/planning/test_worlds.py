"""Planning in a world that is no maze: a point that is pushed about in three dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.schedule import cosine
from dforce.data import Windows
from dforce.data.episodes import pack
from dforce.nets.recurrent import RecurrentNet
from dforce.planning.baselines.cloning import behaviour_cloning
from dforce.planning.baselines.drivers import retrieval_planner, run_driver, straight_in
from dforce.planning.baselines.mppi import mppi
from dforce.planning.control import diffused_action, run_episodes, tracking
from dforce.planning.evaluation import compare_methods, planned, reference_methods
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.tasks import Task
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective

DT, RADIUS = 0.1, 0.4


class Points:
    """n points: velocity += dt * action, position += dt * velocity."""

    def begin(self, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
        self.state, self.goal = np.array(start, float), np.asarray(goal, float)
        return self.state.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.state[:, 3:] += DT * np.clip(action, -1, 1)
        self.state[:, :3] += DT * self.state[:, 3:]
        return self.state.copy(), (np.linalg.norm(self.state[:, :3] - self.goal, axis=1) <= RADIUS).astype(float)


@dataclass(frozen=True)
class Space:
    """The world of such points, an `Env`."""

    name: str = "space"
    observation_width: int = 6
    action_width: int = 3
    goal_width: int = 3
    max_steps: int = 60
    gains: tuple[float, float] = (2.0, 2.0)
    draw: None = None

    def copies(self, n: int) -> Points:
        return Points()

    def position(self, observation: np.ndarray) -> np.ndarray:
        return observation[..., :3]

    def arrived(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        return np.linalg.norm(observation[..., :3] - goal, axis=-1) <= RADIUS

    def check(self, starts: np.ndarray, goals: np.ndarray) -> None:
        if np.abs(goals).max() > 5:
            raise ValueError("a goal is further than 5 from the origin")


def ends(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts at rest and goals, both in a cube of side 2."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.uniform(-1, 1, (count, 3)), np.zeros((count, 3))], 1), rng.uniform(-1, 1, (count, 3))


SPACE = Space()
TASK = Task("space", SPACE, 60, ends, lambda steps: "no data set")


@pytest.fixture(scope="module")
def demonstrations() -> tuple[np.ndarray, np.ndarray]:
    """Straight drives, observations [C, 61, 6] and actions [C, 60, 3]."""
    played = run_driver(SPACE, straight_in(SPACE), *ends(400, 1))
    return played.trajectory, played.actions


@pytest.fixture(scope="module")
def planner(demonstrations: tuple[np.ndarray, np.ndarray]) -> DiffusionPlanner:
    """A diffusion planner trained on them for seconds."""
    observations, actions = demonstrations
    windows = Windows(pack(list(observations), list(actions), [np.zeros(60)] * len(actions)), horizon=60, stack=10,
                      batch=32)
    torch.manual_seed(0)
    schedule = cosine(100)
    model = Precond(RecurrentNet(windows.event_shape, width=64, static={"start": 6}), schedule, "x0")
    list(fit(ForcingObjective(model, schedule), windows.batch_at, lr=3e-3, steps=250, warmup=20, precision="fp32",
             ema=None, device="cpu"))
    model.requires_grad_(False)
    return DiffusionPlanner(model, schedule, windows.normalizer, windows.layout, steps=10, scale=0.5)


def test_plans_are_made_driven_and_scored_without_a_maze(planner: DiffusionPlanner) -> None:
    starts, goals = TASK.starts(40, 7)
    methods = [*reference_methods(SPACE), *(planned(name, SPACE, planner.with_(scale=scale), tracking())
                                            for name, scale in (("unguided", 0.0), ("guided", 0.5)))]
    compared = compare_methods(SPACE, methods, starts, goals, task="space")
    assert [method.name for method in methods] == ["random", "straight", "unguided", "guided"]  # no scripted controller
    success = {row["method"]: row["value"] for row in compared.rows
               if row["metric"] == "success" and row["variant"]["starts"] == "all"}
    assert success["straight"] == 1 and success["guided"] > success["unguided"] + 0.3
    assert not {"score", "wall_contact", "in_wall"} & {row["metric"] for row in compared.rows}
    plan = compared.played[-1].plan
    assert plan is not None and plan.states.shape == (40, 60, 6) and plan.actions.shape == (40, 60, 3)
    near = np.linalg.norm(plan.states[:, -1, :3] - goals, axis=1)
    assert near.mean() < 0.5 * np.linalg.norm(starts[:, :3] - goals, axis=1).mean()
    assert not compared.blocked.any()
    with pytest.raises(ValueError, match="which is no maze"):
        TASK.maze  # noqa: B018


@pytest.mark.slow
def test_baselines_need_no_maze_either(demonstrations: tuple[np.ndarray, np.ndarray]) -> None:
    starts, goals = TASK.starts(12, 3)
    memory = retrieval_planner(*demonstrations, horizon=60, arrive=0.6)
    assert run_episodes(SPACE, memory, tracking(), starts, goals).rewards.shape == (12, 60)
    assert run_episodes(SPACE, memory, diffused_action(), starts, goals).actions.shape == (12, 60, 3)
    assert run_driver(SPACE, mppi(SPACE, horizon=15, samples=32), starts, goals, steps=40).success.mean() > 0.5
    clone = behaviour_cloning(*demonstrations, reach=60, steps=150, width=32)
    assert run_driver(SPACE, clone, starts, goals).actions.shape == (12, 60, 3)
    with pytest.raises(ValueError, match=r"goals must be \[12, 3\]"):
        run_driver(SPACE, straight_in(SPACE), starts, goals[:, :2])
