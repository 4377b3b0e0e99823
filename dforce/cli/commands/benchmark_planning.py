"""`dforce benchmark planning`: planners on one task, trained, tuned, played and compared; it can be continued."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dforce.benchmarks.planning.run import PlanningRun
from dforce.cli.compose import changed_suite, composed, shipped_suite
from dforce.cli.short import shortened
from dforce.config import read
from dforce.planning.tasks import get_task
from dforce.runs.folder import Invocation
from dforce.runs.trajectory_training import TrajectoryTraining
from dforce.train.checkpoint import model_of


def run(cfg: Any, call: Invocation) -> None:
    """Does what is left of the benchmark, in this process; others may work in the same folder."""
    if cfg["threads"]:
        torch.set_num_threads(cfg["threads"])

    def compose(changes: Mapping[str, Any]) -> tuple[TrajectoryTraining, dict[str, Any]]:
        train, _ = shortened("train", composed("train", {**changes, "trust": cfg["trust"]}))
        return read(train, TrajectoryTraining, trust=cfg["trust"], model=model_of(train)), train

    file = Path(cfg["suite"]) if cfg["suite"] else shipped_suite(get_task(cfg["task"]).name, cfg["size"])
    read(cfg, PlanningRun, suite=changed_suite(file, cfg["change"] or {}), file=file, compose=compose).run(call)
