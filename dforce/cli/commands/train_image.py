"""`dforce train image`: images of named classes to a model of them, and a classifier that judges its samples."""

from typing import Any

from dforce.cli.compose import resumed
from dforce.config import read
from dforce.images.training import ImageTraining
from dforce.runs.folder import Invocation
from dforce.runs.training_run import run_training
from dforce.train.checkpoint import model_of

KEYS = frozenset({"fit", "data", "net", "drop", "classifier"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Trains; checkpoints, classifier, metrics and the page go into the run folder."""
    cfg, call = resumed(cfg, call, KEYS)
    training = read(cfg, ImageTraining, trust=cfg["trust"], model=model_of(cfg))
    folder = run_training(training, call, begin=training.train_judge)
    if folder is not None:
        print(f"draw more with: dforce sample image checkpoint={folder}")
