"""`dforce align planner`: a planner tuned on what its plans earn, beside rivals that do not learn."""

from __future__ import annotations

from typing import Any

from dforce.config import read
from dforce.planning.tuning import Guided, Monitoring, PlannerTuning, PlanSampling, algorithm_settings
from dforce.planning.tuning_run import run_planner_tuning
from dforce.runs.folder import Invocation
from dforce.runs.job_run import check_settings

SETTINGS = ("epochs", "samples", "group", "updates", "passes", "lr", "advantage", "limit", "clip_nats", "kl",
            "kl_target", "fraction", "global_std", "same_start", "beta", "keep", "pairs")  # of the algorithm
SHARED = ("epochs", "samples")  # settings that the algorithms beside it have as well
FREE = frozenset({"seeds", "beside", "limit_seconds", "out", "pictures"})  # may change from one call to the next


def run(cfg: Any, call: Invocation) -> None:
    """Does what is left: tunings and evaluations, then tables and pictures of all results there are."""
    if not cfg["checkpoint"]:
        raise ValueError("checkpoint is needed: a run folder of `dforce train`, a checkpoint, or the name of a model "
                         "that ships with dforce, such as maze2d-umaze")
    given = {key: cfg[key] for key in SETTINGS if cfg[key] is not None}
    shared = {key: value for key, value in given.items() if key in SHARED}
    fast = cfg["fast_dev_run"]
    algorithms = {cfg["algorithm"]: algorithm_settings(cfg["algorithm"], given, fast=fast)}
    algorithms |= {name: algorithm_settings(name, shared, fast=fast) for name in cfg["beside"]
                   if name not in algorithms}
    tuning = read(cfg, PlannerTuning, trust=cfg["trust"], algorithms=algorithms,
                  guided=read(cfg["guided"], Guided), policy=read(cfg["policy"], PlanSampling),
                  watch=read(cfg["watch"], Monitoring))
    check_settings(call, FREE)
    run_planner_tuning(tuning, call)
