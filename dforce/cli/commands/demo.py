"""`dforce demo`: demonstrations, training, planning, scores and a page to open, in one command."""

from typing import Any

from dforce.benchmarks.demo import Demo
from dforce.config import read
from dforce.planning.run import PlanRun
from dforce.runs.folder import Invocation
from dforce.runs.trajectory_training import TrajectoryTraining
from dforce.train.checkpoint import model_of


def run(cfg: Any, call: Invocation) -> None:
    """The whole road, into one run folder."""
    trust = cfg["trust"]
    train = {**cfg["train"], "seed": cfg["seed"], "trust": trust}
    demo = read(cfg, Demo, trust=trust, record=train, planning=read(cfg["plan"], PlanRun, trust=trust),
                training=read(train, TrajectoryTraining, trust=trust, model=model_of(train)))
    with call.folder() as folder:
        demo.run(folder)
