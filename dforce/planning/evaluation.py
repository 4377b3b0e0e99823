"""Several planners and drivers on the same starts: rows, episode lines, and the played episodes for pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dforce.envs import Maze, World
from dforce.planning.baselines.drivers import controller_driver, random_driver, run_driver, straight_in
from dforce.planning.control import Executed, Executor, Plan, Planner, run_episodes, suited
from dforce.planning.scores import Row, ScoreReport, blocked_mask, paired_difference, score_report


class Method(NamedTuple):
    """What is compared: `play(starts [N, 4], goals [N, 2]) -> Executed`, under a name and a flat variant."""

    name: str
    variant: dict[str, Any]
    play: Callable[[np.ndarray, np.ndarray], Executed]


class Comparison(NamedTuple):
    """Rows and episode lines of all methods; `played` and `reports` by method number."""

    rows: list[Row]
    episodes: list[dict[str, Any]]
    played: list[Executed]
    reports: list[ScoreReport]
    blocked: np.ndarray  # [N]


def references(place: Maze | World, *, seed: int = 0) -> list[Method]:
    """Random actions, straight driving at the goal, and the scripted controller that knows the maze."""
    def driven(driver: Any) -> Callable[[np.ndarray, np.ndarray], Executed]:
        return lambda starts, goals: run_driver(place, driver, starts, goals, seed=seed)

    return [Method("random", {}, driven(random_driver)), Method("straight", {}, driven(straight_in(place))),
            Method("controller", {}, lambda starts, goals: run_driver(place, controller_driver(place), starts, goals,
                                                                      seed=seed))]


def planned(name: str, place: Maze | World, planner: Planner, executor: Executor, *, seed: int = 0,
            variant: dict[str, Any] | None = None, **control: Any) -> Method:
    """A planner under an executor; `control` is replan_every and shrink of `run_episodes`."""
    def play(starts: np.ndarray, goals: np.ndarray) -> Executed:
        return run_episodes(place, planner, executor, starts, goals, seed=seed, **control)

    named = {**getattr(planner, "variant", {}), **getattr(suited(executor, place), "variant", {}), **(variant or {})}
    return Method(name, {**named, **{key: value for key, value in control.items() if value}}, play)


class once:
    """A planner that answers its last question again without planning: several executors of the same plans."""

    def __init__(self, planner: Planner):
        self.planner, self.asked = planner, b""
        self.plan: Plan | None = None
        self.variant = getattr(planner, "variant", {})

    def __call__(self, obs: np.ndarray, goal: np.ndarray, remaining: int, rng: np.random.Generator) -> Plan:
        asked = obs.tobytes() + goal.tobytes() + f"{remaining} {rng.bit_generator.state}".encode()
        if asked != self.asked or self.plan is None:
            self.asked, self.plan = asked, self.planner(obs, goal, remaining, rng)
        return self.plan


def compare(place: Maze | World, methods: Iterable[Method], starts: np.ndarray, goals: np.ndarray, *, task: str,
            tell: Callable[[str], None] = lambda name: None) -> Comparison:
    """Play every method from the same starts [N, 4] to goals [N, 2] or [2]; `tell(name)` before each."""
    goals = np.broadcast_to(goals, (len(starts), 2))
    blocked = blocked_mask(place, starts, goals)
    rows, lines, played, reports = [], [], [], []
    for method in methods:
        tell(method.name)
        played.append(method.play(starts, goals))
        reports.append(score_report(place, [played[-1]], [blocked]))
        rows += reports[-1].rows(task=task, method=method.name, variant=method.variant)
        lines += reports[-1].episodes(task=task, method=method.name, variant=method.variant)
    return Comparison(rows, lines, played, reports, blocked)


def difference(task: str, name: str, a: ScoreReport, b: ScoreReport, *, metric: str = "score") -> list[Row]:
    """Rows of the paired difference a - b on the same starts, over all of them and over the blocked ones."""
    rows = []
    for starts, mask in (("all", np.ones_like(a.blocked)), ("blocked", a.blocked)):
        if mask.any():
            found = paired_difference(a.values[metric][mask], b.values[metric][mask], a.seed[mask])
            rows.append({"task": f"{task}, paired differences", "method": name, "variant": {"starts": starts},
                         "metric": f"{metric}_difference", **found._asdict(), "seeds": len(np.unique(a.seed)),
                         "unit": "D4RL-normalised x100, paired",
                         "higher_is_better": True})
    return rows
