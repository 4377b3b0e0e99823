"""`dforce rollout`: a video model rolled out as far as one likes, filmed as it goes, and held against real video."""

from typing import Any

from dforce.config import read
from dforce.runs.checkpoint_defaults import defaults, no_checkpoint
from dforce.runs.folder import Invocation
from dforce.train.precision import device_of
from dforce.video.evaluation import MetricSettings
from dforce.video.film import need_film_writer
from dforce.video.model import load_video
from dforce.video.rollout_run import RolloutRun
from dforce.video.stream import Recipe


def run(cfg: Any, call: Invocation) -> None:
    """Rolls out, films, measures; or serves the model to a browser."""
    if not cfg["checkpoint"]:
        raise no_checkpoint("train video")
    model = load_video(cfg["checkpoint"], device=device_of(cfg["device"]), raw=cfg["raw"], trust=cfg["trust"])
    cfg = defaults(cfg, model.config.get("recipe", {}), given=call.given, unless=("method",))
    recipe, lines = read(cfg, Recipe).checked(model.stack).fitting(call.given, latents=model.latents is not None)
    print(*lines, sep="\n", end="\n" if lines else "")
    rollout = read(cfg, RolloutRun, model=model, recipe=recipe, settings=read(cfg, MetricSettings))
    if cfg["serve"]:
        rollout.serve(int(cfg["serve"]), cfg["host"] and str(cfg["host"]))
        return
    if rollout.film:
        need_film_writer("film=false")
    with call.folder(resume=cfg["resume"]) as folder:
        rollout.run(folder)
