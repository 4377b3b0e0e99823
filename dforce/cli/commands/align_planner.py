"""`dforce align planner`: a planner tuned on what its plans earn, beside rivals that do not learn."""

from typing import Any

from dforce.align.algorithms.common import Algorithm
from dforce.config import build, option, read
from dforce.planning.tuning import Guided, Monitoring, PlannerTuning, PlanSampling, suited_settings
from dforce.planning.tuning_run import run_planner_tuning
from dforce.runs.checkpoint_defaults import no_checkpoint
from dforce.runs.folder import Invocation
from dforce.runs.job_run import check_settings

SHARED = ("epochs", "samples")  # settings that the algorithms beside the first one take from it
FREE = frozenset({"seeds", "beside", "limit_seconds", "out", "pictures"})  # may change from one call to the next


def run(cfg: Any, call: Invocation) -> None:
    """Does what is left: tunings and evaluations, then tables and pictures of all results there are."""
    if not cfg["checkpoint"]:
        raise no_checkpoint("train")
    given = {key: cfg["algorithm"][key] for key in cfg["algorithm"] if f"algorithm.{key}" in call.given}
    first = suited(cfg["algorithm"], given, cfg)
    beside = [suited(option("algorithm", name), {key: given[key] for key in SHARED if key in given}, cfg)
              for name in cfg["beside"]]
    tuning = read(cfg, PlannerTuning, trust=cfg["trust"],
                  algorithms={each.name: each for each in (first, *beside, first)}, guided=read(cfg["guided"], Guided),
                  policy=read(cfg["policy"], PlanSampling), watch=read(cfg["watch"], Monitoring))
    check_settings(call, FREE)
    run_planner_tuning(tuning, call)


def suited(node: dict[str, Any], given: dict[str, Any], cfg: Any) -> Algorithm:
    """An algorithm with the settings given, else those that suit planners, else its own."""
    name = build(node, trust=cfg["trust"]).name
    settings = {**suited_settings(name, node), **given}
    algorithm: Algorithm = build({**node, **{key: settings[key] for key in settings if key in node}},
                                 trust=cfg["trust"])
    return algorithm
