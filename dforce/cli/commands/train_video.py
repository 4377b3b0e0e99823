"""`dforce train video`: clips and their actions to a world model that rolls out."""

from typing import Any

from dforce.cli.compose import resumed
from dforce.config import read
from dforce.runs.folder import Invocation
from dforce.runs.training_run import run_training
from dforce.train.checkpoint import model_of
from dforce.video.training import VideoTraining

KEYS = frozenset({"fit", "data", "net", "frames", "latents"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Trains; checkpoints, metrics and the page go into the run folder, the old one of a resumed run."""
    cfg, call = resumed(cfg, call, KEYS)
    folder = run_training(read(cfg, VideoTraining, trust=cfg["trust"], model=model_of(cfg)), call)
    if folder is not None:
        print(f"roll it out: dforce rollout checkpoint={folder}")
