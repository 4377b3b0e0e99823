"""`dforce align video`: a world model of video towards a reward of images, beside the model begun with."""

from typing import Any

from dforce.align.tuning_run import run_tuning
from dforce.cli.compose import resumed, with_usual
from dforce.config import read
from dforce.runs.folder import Invocation
from dforce.video.tuning import VideoTuning

KEYS = frozenset({"checkpoint", "algorithm", "reward", "rollouts"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Tunes; checkpoints, metrics, results, film and the page go into the run folder."""
    cfg, call = resumed(*with_usual(cfg, call), KEYS, within="align")
    folder = run_tuning(read(cfg, VideoTuning, trust=cfg["trust"]), call)
    if folder is not None:
        print(f"roll it out: dforce rollout checkpoint={folder}")
