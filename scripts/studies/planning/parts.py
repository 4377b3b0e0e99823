"""Parts that the studies of planners share: starts, tuning, and how far plans spread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dforce.benchmarks.planning.benchmark import criterion
from dforce.planning.control import Executor, Planner, run_episodes
from dforce.planning.scores import blocked_mask, score_report
from dforce.planning.tasks import Task
from dforce.report.rows import Row, make_row
from dforce.report.statistics import bootstrap_interval

TUNE_SEED = 1001  # of the starts that settings are chosen on; no study reports them


def starts_of(task: Task, episodes: int, seeds: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Starts [E, O] and goals [E, 2], `episodes` of them for each start seed."""
    starts, goals = zip(*(task.starts(episodes, seed) for seed in seeds), strict=True)
    return np.concatenate(starts), np.concatenate(goals)


def best_trial(task: Task, planner: Any, executor: Executor, trials: Sequence[Mapping[str, Any]], *, episodes: int,
          seed: int = TUNE_SEED, **control: Any) -> tuple[Any, list[float]]:
    """The planner with the settings of the trial that did best on starts of their own, and what each trial got.

    trials: settings for `planner.with_`; what counts is the benchmark's `criterion`. control: of `run_episodes`.
    """
    starts, goals = starts_of(task, episodes, [seed])
    blocked = blocked_mask(task.world, starts, goals)
    criteria = []
    for trial in trials:
        played = run_episodes(task.world, planner.with_(**trial), executor, starts, goals, steps=task.steps, seed=seed,
                              **control)
        criteria.append(criterion(score_report(task.world, [played], [blocked])))
    return planner.with_(**trials[int(np.argmax(criteria))]), criteria


def far_ends(planner: Planner, starts: np.ndarray, goals: np.ndarray, steps: int, *, plans: int,
             seed: int = 0) -> np.ndarray:
    """Where several plans of each start end: starts [E, O], goals [E, 2] -> last positions [E, plans, 2]."""
    plan = planner(np.repeat(starts, plans, 0), np.repeat(goals, plans, 0), steps, np.random.default_rng(seed))
    return plan.states[:, -1, :2].reshape(len(starts), plans, 2)


def end_spread(points: np.ndarray) -> np.ndarray:
    """Root of the total variance of positions [E, P, 2] about the mean of their P, in their unit: [E].

    The variance is the unbiased one, so P >= 2 (else ValueError).
    """
    if points.shape[1] < 2:
        raise ValueError(f"a spread takes at least 2 plans of a start, got {points.shape[1]}")
    return np.sqrt(points.var(axis=1, ddof=1).sum(axis=-1))


def spread_row(task: Task, method: str, variant: Mapping[str, Any], ends: np.ndarray) -> Row:
    """The row of `far_ends` [E, P, 2]: their mean spread over starts, with its bootstrap interval."""
    estimate = bootstrap_interval(end_spread(ends), rng=np.random.default_rng(0))
    return make_row(task.name, method, "far_spread", estimate, variant={**variant, "plans": ends.shape[1]},
                    unit="m, std of the last state of a plan")
