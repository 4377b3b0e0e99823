"""`dforce evaluate robot`: policies in simulation, with and without faults."""

from typing import Any

from dforce.benchmarks.robot.run import RobotEvaluation
from dforce.config import read
from dforce.runs.folder import Invocation
from dforce.train.precision import device_of


def run(cfg: Any, call: Invocation) -> None:
    """Plays, scores, films."""
    if not cfg["checkpoint"]:
        raise ValueError("checkpoint is needed: a run folder of `dforce imitate`, a checkpoint, or the name of a model "
                         "that ships with dforce; a list of them compares")
    evaluation = read(cfg, RobotEvaluation, trust=cfg["trust"], device=device_of(cfg["device"]))
    play = evaluation.prepare()
    with call.folder() as folder:
        play(folder)
