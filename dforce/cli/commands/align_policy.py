"""`dforce align policy`: a policy tuned on what its episodes return, beside the policy begun with."""

from typing import Any

from dforce.align.policy_tuning import PolicyTuning
from dforce.align.tuning_run import run_tuning
from dforce.cli.compose import resumed
from dforce.config import read
from dforce.runs.folder import Invocation
from dforce.runs.imitation import see_it_act

KEYS = frozenset({"checkpoint", "algorithm", "starts", "copies"})  # what the configuration of its runs has


def run(cfg: Any, call: Invocation) -> None:
    """Tunes; checkpoints, metrics, results and the page go into the run folder."""
    cfg, call = resumed(cfg, call, KEYS)
    folder = run_tuning(read(cfg, PolicyTuning, trust=cfg["trust"]), call)
    if folder is not None:
        print(f"see it act with: {see_it_act(folder)}")
