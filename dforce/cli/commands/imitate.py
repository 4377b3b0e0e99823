"""`dforce imitate`: demonstrations to a policy that remembers."""

from typing import Any

from dforce.cli.compose import resumed
from dforce.config import read
from dforce.runs.folder import Invocation
from dforce.runs.imitation import ImitationTraining, see_it_act
from dforce.runs.training_run import run_training
from dforce.train.checkpoint import model_of

KEYS = frozenset({"fit", "data", "net", "chunk", "imitation"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Trains; checkpoints, metrics and the page go into the run folder, the old one of a resumed run."""
    cfg, call = resumed(cfg, call, KEYS)
    folder = run_training(read(cfg, ImitationTraining, trust=cfg["trust"], model=model_of(cfg)), call)
    if folder is not None:
        print(f"see it act with: {see_it_act(folder)}")
