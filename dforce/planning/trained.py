"""Planners around checkpoints."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from dforce.planning.planner import DiffusionPlanner
from dforce.planning.tasks import Task, trained_task
from dforce.train.checkpoint import Bundle, CheckpointError


def task_of(bundle: Bundle) -> Task:
    """The task whose demonstrations a checkpoint was trained on. Raises CheckpointError where it cannot plan."""
    try:
        task = trained_task(bundle.layout)
    except ValueError as error:
        raise CheckpointError(f"{error}; take one that `dforce train data=dforce/maze2d-<maze>-v1` made") from error
    if bundle.normalizer is None:
        raise CheckpointError("this checkpoint has no normalizer, so its plans have no units; take one that "
                              "`dforce train` made")
    return task


def planner_around(bundle: Bundle, make: Callable[..., Any] = DiffusionPlanner, **settings: Any) -> Any:
    """make(...) with those of denoiser, schedule, normalizer, layout and settings that it has arguments for.

    The weights are frozen: guidance differentiates in the plan only.
    Raises ValueError for a checkpoint that was not trained on trajectories.
    """
    if bundle.normalizer is None or "observation" not in bundle.layout:
        raise ValueError(f"a planner needs a checkpoint that was trained on trajectories, this one holds "
                         f"{sorted(bundle.layout)}; `dforce train data=dforce/maze2d-umaze-v1` makes one")
    bundle.denoiser.requires_grad_(False)
    offered = {"denoiser": bundle.denoiser, "schedule": bundle.schedule, "normalizer": bundle.normalizer,
               "layout": bundle.layout, **settings}
    taken = inspect.signature(make).parameters
    return make(**{name: value for name, value in offered.items() if name in taken})
