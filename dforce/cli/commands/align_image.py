"""`dforce align image`: an image model towards a reward, beside the model begun with and best of n of it."""

from typing import Any

from dforce.align.tuning_run import run_tuning
from dforce.cli.compose import resumed
from dforce.config import read
from dforce.images.tuning import ImageTuning
from dforce.runs.folder import Invocation

KEYS = frozenset({"checkpoint", "algorithm", "reward", "steps"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Tunes; checkpoints, metrics, results, pictures and the page go into the run folder."""
    cfg, call = resumed(cfg, call, KEYS)
    folder = run_tuning(read(cfg, ImageTuning, trust=cfg["trust"]), call)
    if folder is not None:
        print(f"draw more with: dforce sample image checkpoint={folder}")
