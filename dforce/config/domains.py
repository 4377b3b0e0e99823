"""The domain of every number that a configuration may hold, by the name of its key; any other number is finite."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dforce.config.values import line_of


class Domain(NamedTuple):
    """Numbers from `lo` to `hi`; above, below: without that end itself."""

    lo: float
    hi: float
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.lo <= value <= self.hi and not (
            self.above and value == self.lo or self.below and value == self.hi)

    def __str__(self) -> str:
        return (f"{'above' if self.above else 'at least'} {self.lo:,.15g} and {'below' if self.below else 'at most'} "
                f"{self.hi:,.15g}")


LARGEST = 1e12
COUNT, AMOUNT = Domain(1, 10**9), Domain(0, 10**9)
SIZE, MANY = Domain(1, 2**16), Domain(1, 2**20)  # of what is allocated: features of a layer; rows, tokens, levels
FEW = Domain(1, 2**10)                           # layers, heads
SEED = Domain(0, 2**63 - 1)
POSITIVE, NOT_NEGATIVE = Domain(0, LARGEST, above=True), Domain(0, LARGEST)
SHARE, PART, SOME = Domain(0, 1), Domain(0, 1, below=True), Domain(0, 1, above=True)
FINITE = Domain(-LARGEST, LARGEST)

DOMAINS = {name: domain for domain, names in (
    (COUNT, "accumulate copies count data_steps execute epochs every evaluations feature_steps frames iterations "
            "judge_steps judged jumpy_steps keep_last points rooms rounds save_every searched spread starts steps "
            "tune_episodes tune_steps validate_batches validate_every watch_every weak_steps refresh replan_every "
            "stride pixels until buffer"),
    (AMOUNT, "action_offset best_of burst context delay evaluate features goal jumpy_delay least pictures reach rest "
             "past number rollout_frames rollouts samples test_clips test_mazes warmup watch classifier span tail "
             "colors retries attended clean_label"),
    (SIZE, "channels coarse head_size image_size latent letters lowrank patch rank side size stack width window"),
    (Domain(0, 2**16), "hidden"),
    (MANY, "actions batch children chunk clips draws episode episodes group horizon last levels lookahead mazes n "
           "clients observations pairs particles passes per_class plans rows sub_plans updates event_shape static "
           "token stabilisation"),
    (FEW, "balls depth floors fps heads layers multipliers objects processes textures threads zones layer longest"),
    (SEED, "eval_seed seed seeds tune_seed classes"),
    (POSITIVE, "beta cap clamp clip clip_nats deadline gamma idle keep kl_max kl_target limit limit_seconds lr pace "
               "power rate slow file_mb pause timeout leap radius"),
    (NOT_NEGATIVE, "accuracy arrive diversity ensemble exploration gain_d gain_p gather guidance history history_std "
                   "kl lam min_std moved noise push sde slack stabilise_std temperature weight_decay data_std dt "
                   "smooth"),
    (SHARE, "decay eta floor gae jolt missing share"), (PART, "betas cut drop dropout ema held_out"),
    (SOME, "clean_scale fraction"), (Domain(1, 2), "order"), (Domain(1, 65535), "serve"), (Domain(0, 65535), "port"),
    (FINITE, "begin hold scale scales sign"),
) for name in names.split()}


def check_numbers(config: Any, *, where: str = "", files: Sequence[Path] = ()) -> None:
    """ValueError for the first number outside of its domain, anywhere in a configuration of plain values.

    where: the key that holds `config`. files: YAML files, searched for the line to name.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            if not _foreign(config, value):
                check_numbers(value, where=f"{where}.{key}".lstrip("."), files=files)
    elif isinstance(config, (list, tuple)):
        for value in config:
            check_numbers(value, where=where, files=files)
    elif isinstance(config, (int, float)) and not isinstance(config, bool):
        parent, _, key = where.rpartition(".")
        key = key.lstrip("+~")
        domain = FINITE if parent.endswith("rewards") else DOMAINS.get(key, FINITE)  # weights, by names of rewards
        if config not in domain:
            raise ValueError(f"{where} must be {domain}, got {config}{line_of(files, key, config)}")


def _foreign(node: Mapping[str, Any], value: Any) -> bool:
    """Is this value of a node one that a constructor of a trusted package judges itself?"""
    target = node.get("_target_")
    return isinstance(target, str) and not target.startswith("dforce.") and not isinstance(value, (Mapping, list))
