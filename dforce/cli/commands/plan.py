"""`dforce plan`: a checkpoint's planner beside drivers that learn nothing, from the same fresh starts."""

from typing import Any

from dforce.config import read
from dforce.planning.run import PlanRun
from dforce.planning.tasks import get_task
from dforce.runs.checkpoint_defaults import defaults, no_checkpoint
from dforce.runs.folder import Invocation
from dforce.train.checkpoint import load
from dforce.train.precision import device_of


def run(cfg: Any, call: Invocation) -> None:
    """Plans, drives, scores and draws."""
    if not cfg["checkpoint"]:
        raise no_checkpoint("train")
    if cfg["maze"] is not None:
        get_task(cfg["maze"])  # refused before anything is loaded
    name = f"maze2d-{cfg['maze'] or 'umaze'}" if cfg["checkpoint"] == "pretrained" else cfg["checkpoint"]
    bundle = load(name, device=device_of(cfg["device"]), raw=cfg["raw"], trust=cfg["trust"])
    brought = {f"planner.{key}": value for key, value in bundle.config.get("planner", {}).items()}
    cfg = defaults(cfg, brought, given=call.given, unless=("planner", "planner._target_"))
    play = read(cfg, PlanRun, trust=cfg["trust"]).prepare(bundle, name)
    with call._replace(config=cfg).folder() as folder:
        play(folder)
