"""Scores of episodes, over all starts and over the blocked ones: driving straight solves most starts of a maze."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dforce.envs import BatchedMaze, Env, Maze, normalized_score
from dforce.planning.baselines.drivers import run_driver, straight_in
from dforce.planning.control import Executed
from dforce.planning.worlds import as_env, maze_of
from dforce.report.rows import Row, make_row
from dforce.report.statistics import bootstrap_interval, success_interval

METRICS: dict[str, tuple[str, bool]] = {  # metric: (unit, higher is better)
    "score": ("D4RL-normalised x100", True),
    "success": ("fraction", True),
    "first_reach": ("steps, where reached", False),
    "return": ("steps at goal", True),
    "score_latched": ("D4RL-normalised x100, reward kept from first success on", True),
    "return_latched": ("steps at goal, reward kept from first success on", True),
    "wall_contact": ("fraction of steps", False),
    "leaps": ("fraction of plans, with a step over twice the fastest executed", False),
    "in_wall": ("fraction of plans, through a wall before they arrive", False),
    "raw_leaps": ("the same before smoothing", False),
    "raw_in_wall": ("the same before smoothing", False),
}
SHARES = ("success", "leaps", "in_wall", "raw_leaps", "raw_in_wall")  # yes or no of each episode
APART = 0.05  # cells between the places of a planned step that are looked at


class ScoreReport(NamedTuple):
    """E episodes of one method, of all its seeds.

    values: no scores where there are no reference returns, nothing of walls where there is no maze, no leaps or in_wall
    where nothing was planned (they are about the first plan); first_reach is -1 where the goal was never reached.
    """

    values: dict[str, np.ndarray]  # metric of METRICS -> [E]
    seed: np.ndarray               # [E], training seed (or repetition) of an episode, equal ones side by side
    blocked: np.ndarray            # [E], whether straight driving fails from its start

    def subsets(self) -> list[tuple[str, np.ndarray]]:
        """All starts, and the blocked ones where there are some: name, mask [E]."""
        masks = [("all", np.ones_like(self.blocked)), ("blocked", self.blocked)]
        return [(name, mask) for name, mask in masks if mask.any()]

    def rows(self, *, task: str, method: str, variant: dict[str, Any] | None = None, seed: int = 0) -> list[Row]:
        """Flat rows, every metric for all starts and for the blocked ones; `seed` is the bootstrap's.

        first_reach averages over the episodes that reached the goal, and its n says how many. A metric without one
        such episode, and `blocked` where no start is, has no row.
        """
        rows = []
        for starts, subset in self.subsets():
            for metric, (unit, higher) in METRICS.items():
                chosen = subset & (self.values["success"] > 0) if metric == "first_reach" else subset
                if metric not in self.values or not chosen.any():
                    continue
                of = success_interval if metric in SHARES else bootstrap_interval
                estimate = of(self.values[metric][chosen], self.seed[chosen], rng=np.random.default_rng(seed))
                rows.append(make_row(task, method, metric, estimate, variant={"starts": starts, **(variant or {})},
                                     seeds=len(np.unique(self.seed)), unit=unit, higher=higher))
        return rows

    def episodes(self, *, task: str, method: str, variant: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """One flat object an episode, for episodes.jsonl: everything that the rows are computed from."""
        names = {"task": task, "method": method, **(variant or {})}
        clash = {"seed", "episode", "blocked", *METRICS} & names.keys()
        if clash:
            raise ValueError(f"variant must not use the names {sorted(clash)}, which an episode's line holds already")
        lines = []
        for e, (seed, blocked) in enumerate(zip(self.seed.tolist(), self.blocked.tolist(), strict=True)):
            place = {"seed": seed, "episode": e - int(np.argmax(self.seed == seed)), "blocked": blocked}
            lines.append(names | place | {metric: float(values[e]) for metric, values in self.values.items()})
        return lines


def score_report(place: Maze | Env, runs: Sequence[Executed], blocked: Sequence[np.ndarray]) -> ScoreReport:
    """The episodes of one method together. runs: one a seed; blocked: its mask [N], one a seed."""
    if len(runs) == 0 or len(runs) != len(blocked):
        raise ValueError(f"want one mask of blocked starts for each of the runs, got {len(runs)} and {len(blocked)}")
    for run, mask in zip(runs, blocked, strict=True):
        if mask.shape != run.success.shape:
            raise ValueError(f"blocked must be {run.success.shape}, one an episode, got {mask.shape}")
    world = as_env(place)
    fastest = max(float(_lengths(world.position(run.trajectory)).max()) for run in runs)
    per_run = [episode_values(world, run, fastest) for run in runs]
    values = {name: np.concatenate([one[name] for one in per_run]) for name in per_run[0]}
    seed = np.repeat(np.arange(len(runs)), [len(run.success) for run in runs])
    return ScoreReport(values, seed, np.concatenate(blocked).astype(bool))


def episode_values(world: Env, run: Executed, fastest: float) -> dict[str, np.ndarray]:
    """Every metric of every episode, name -> [N] float64. fastest: the longest step that was executed."""
    values = {"return": run.returns, "return_latched": run.latched, "success": run.success,
              "first_reach": run.first_reach}
    maze = maze_of(world)
    if maze is not None:
        if maze.ref_min is not None:
            values |= {"score": normalized_score(maze, run.returns),
                       "score_latched": normalized_score(maze, run.latched)}
        values["wall_contact"] = maze.near_wall(world.position(run.trajectory[:, :-1])).mean(axis=1)
    if run.plan is not None:
        raw = run.plan.states if run.plan.raw is None else run.plan.raw
        for name, states in (("", run.plan.states), ("raw_", raw)):
            path, due = planned_path(world, run._replace(plan=run.plan._replace(states=states)))
            values[f"{name}leaps"] = ((_lengths(path) > 2 * fastest) & due).any(axis=1)
            if maze is not None:
                values[f"{name}in_wall"] = (_through_walls(maze, path) & due).any(axis=1)
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


def planned_path(world: Env, run: Executed) -> tuple[np.ndarray, np.ndarray]:
    """Places [N, H + 1, P] of the first plan from the start on, and which steps [N, H] come before its arrival."""
    assert run.plan is not None
    path = world.position(np.concatenate([run.trajectory[:, :1], run.plan.states], axis=1))
    there = world.arrived(run.plan.states, run.goals[:, None])
    return path, np.cumsum(there, axis=1) - there == 0  # the step that arrives, too


def _lengths(path: np.ndarray) -> np.ndarray:
    """Of the steps of paths [N, H + 1, P], [N, H]."""
    return np.asarray(np.linalg.norm(np.diff(path, axis=1), axis=-1))


def _through_walls(maze: Maze, path: np.ndarray) -> np.ndarray:
    """Which steps [N, H] of paths [N, H + 1, 2] lead through a place where no ball can be, or end there."""
    steps = np.diff(path, axis=1).reshape(-1, 2)
    pieces = np.ceil(np.linalg.norm(steps, axis=1) / (APART * maze.frame.unit)).astype(int).clip(1)
    step = np.repeat(np.arange(len(steps)), pieces)
    part = (np.arange(len(step)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + 1) / pieces[step]
    place = path[:, :-1].reshape(-1, 2)[step] + part[:, None] * steps[step]
    inside = np.bincount(step, ~maze.is_free(place), minlength=len(steps)) > 0
    return np.asarray(inside.reshape(path.shape[0], -1))


def fresh_starts(maze: Maze, n: int, seed: int) -> np.ndarray:
    """n starts by D4RL's reset law: a uniform free cell +-.1, velocity N(0, .1^2). -> [n, 4]"""
    return BatchedMaze(maze, n).reset(np.random.default_rng(seed))


def blocked_mask(place: Maze | Env, starts: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """[N] bool: where straight driving, in a world that allows it, never reaches the goal in an episode."""
    if as_env(place).gains is None:
        return np.zeros(len(starts), dtype=bool)
    return ~run_driver(place, straight_in(place), starts, goals).success
