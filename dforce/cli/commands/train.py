"""`dforce train`: a data set of trajectories to a checkpoint."""

from typing import Any

from dforce.cli.compose import resumed
from dforce.config import read
from dforce.planning.tasks import next_command
from dforce.runs.folder import Invocation
from dforce.runs.training_run import run_training
from dforce.runs.trajectory_training import TrajectoryTraining
from dforce.train.checkpoint import load, model_of

KEYS = frozenset({"fit", "data", "net", "horizon", "stack"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Trains; checkpoints, metrics and the page go into the run folder, the old one of a resumed run."""
    cfg, call = resumed(cfg, call, KEYS)
    folder = run_training(read(cfg, TrajectoryTraining, trust=cfg["trust"], model=model_of(cfg)), call)
    if folder is not None:
        print(next_command(load(folder, trust=cfg["trust"]).layout, folder))
