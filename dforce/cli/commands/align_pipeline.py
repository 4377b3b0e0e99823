"""`dforce align pipeline`: a pretrained pipeline of diffusers towards a reward, beside the pipeline begun with."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from dforce.align.tuning_run import run_tuning
from dforce.cli.compose import resumed
from dforce.config import option, read
from dforce.images.pipeline_tuning import PipelineTuning
from dforce.images.trl import latent_numbers, read_trl
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


def with_trl(cfg: Mapping[str, Any], call: Invocation) -> tuple[dict[str, Any], Invocation]:
    """The configuration with what cfg["trl"], a file of a DDPOConfig, says of keys that the command line does not."""
    if not cfg["trl"]:
        return dict(cfg), call
    given = read_trl(cfg["trl"], dims=latent_numbers(str(cfg["pipeline"]), cfg["size"]))
    if cfg["algorithm"]["_target_"] != option("algorithm", given.words["algorithm"])["_target_"]:
        raise ValueError(f"trl={cfg['trl']} has the settings of algorithm={given.words['algorithm']}: leave the other "
                         "algorithm out, or trl")
    merged = OmegaConf.create(dict(cfg))
    for key, value in given.words.items():
        if key != "algorithm" and key not in call.given:
            OmegaConf.update(merged, key, value)
    for note in given.notes:
        print(f"note: {note}")
    changed: Any = OmegaConf.to_container(merged, resolve=True)
    return changed, call._replace(config=changed)
