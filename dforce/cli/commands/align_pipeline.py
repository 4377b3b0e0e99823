"""`dforce align pipeline`: a pretrained pipeline of diffusers towards a reward, beside the pipeline begun with."""

from typing import Any

from dforce.align.tuning_run import run_tuning
from dforce.cli.compose import resumed, with_trl
from dforce.config import read
from dforce.images.pipeline_tuning import PipelineTuning
from dforce.runs.folder import Invocation

KEYS = frozenset({"pipeline", "algorithm", "reward", "prompts"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Tunes; adapters, metrics, results, pictures and the page go into the run folder."""
    cfg, call = resumed(*with_trl(cfg, call), KEYS)
    if cfg["algorithm"].get("preferences") and "algorithm.samples" not in call.given:
        del cfg["algorithm"]["samples"]  # the usual number of a pipeline, which says nothing about pairs of a file
    tuning = read(cfg, PipelineTuning, trust=cfg["trust"])
    folder = run_tuning(tuning, call)
    if folder is not None:
        print(f"draw more with: dforce sample pipeline pipeline={tuning.pipeline} lora={folder} prompts=...")
