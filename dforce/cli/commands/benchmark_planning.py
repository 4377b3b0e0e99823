"""`dforce benchmark planning`: planners on one task, trained, tuned, played and compared; it can be continued."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dforce.benchmarks.planning.run import PlanningRun
from dforce.cli.compose import composed
from dforce.config import read
from dforce.runs.folder import Invocation
from dforce.runs.trajectory_training import TrajectoryTraining
from dforce.train.checkpoint import model_of


def run(cfg: Any, call: Invocation) -> None:
    """Does what is left of the benchmark, in this process; others may work in the same folder."""
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])

    def compose(changes: Mapping[str, Any]) -> tuple[TrajectoryTraining, dict[str, Any]]:
        train = composed("train", {**changes, "trust": cfg["trust"]})
        return read(train, TrajectoryTraining, trust=cfg["trust"], model=model_of(train)), train

    read(cfg, PlanningRun, compose=compose).run(call)
