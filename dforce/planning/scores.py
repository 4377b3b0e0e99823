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
    "plan_in_wall": ("fraction of planned states", False),
}


class ScoreReport(NamedTuple):
    """E episodes of one method, of all its seeds.

    values: no scores where there are no reference returns, nothing of walls where there is no maze, no plan_in_wall
    where nothing was planned (it is about the first plan); first_reach is -1 where the goal was never reached.
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
                of = success_interval if metric == "success" else bootstrap_interval
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
    per_run = [episode_values(as_env(place), run) for run in runs]
    values = {name: np.concatenate([one[name] for one in per_run]) for name in per_run[0]}
    seed = np.repeat(np.arange(len(runs)), [len(run.success) for run in runs])
    return ScoreReport(values, seed, np.concatenate(blocked).astype(bool))


def episode_values(world: Env, run: Executed) -> dict[str, np.ndarray]:
    """Every metric of every episode, name -> [N] float64."""
    values = {"return": run.returns, "return_latched": run.latched, "success": run.success,
              "first_reach": run.first_reach}
    maze = maze_of(world)
    if maze is not None:
        if maze.ref_min is not None:
            values |= {"score": normalized_score(maze, run.returns),
                       "score_latched": normalized_score(maze, run.latched)}
        values["wall_contact"] = maze.near_wall(world.position(run.trajectory[:, :-1])).mean(axis=1)
        if run.plan is not None:
            values["plan_in_wall"] = 1.0 - maze.is_free(world.position(run.plan.states)).mean(axis=1)
    return {name: np.asarray(value, dtype=np.float64) for name, value in values.items()}


def fresh_starts(maze: Maze, n: int, seed: int) -> np.ndarray:
    """n starts by D4RL's reset law: a uniform free cell +-.1, velocity N(0, .1^2). -> [n, 4]"""
    return BatchedMaze(maze, n).reset(np.random.default_rng(seed))


def blocked_mask(place: Maze | Env, starts: np.ndarray, goals: np.ndarray) -> np.ndarray:
    """[N] bool: where straight driving, in a world that allows it, never reaches the goal in an episode."""
    if as_env(place).gains is None:
        return np.zeros(len(starts), dtype=bool)
    return ~run_driver(place, straight_in(place), starts, goals).success
