"""Algorithms by name: each makes loss, source of batches and options of `fit` out of one set of settings.

An algorithm says which settings it uses and what they are unless given; one that does nothing for it is refused, so
that a table of settings is a table of what was done. To tune with one: `tune(build("dpok", sampler, reward, ask))`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dforce.align import recipes
from dforce.align.loop import Aligning
from dforce.align.on_policy import Ask, Sampler
from dforce.align.recipes import Parts
from dforce.align.rewards.protocol import Reward
from dforce.config import nearest
from dforce.core.denoiser import Cond

RATE = {"lr": 3e-4, "decay": "constant"}
ONLINE = {"epochs": 40, "samples": 256, "updates": 4, "passes": 1, "group": 1, **RATE}
CREDIT = {"advantage": "prompt", "limit": 5.0}
POLICY = {**ONLINE, **CREDIT, "fraction": 1.0, "kl": 0.0, "kl_target": None, "gae": None}
FORWARD = {**ONLINE, "updates": 8, "lr": 1e-4, "advantage": "prompt"}
PAIRED = {**ONLINE, "updates": 8, "lr": 1e-4, "group": 8, "pairs": 2}


class Recipe(NamedTuple):
    """uses: the settings that have an effect, and their values unless given. make: (`Parts`) -> `Aligning`."""

    about: str
    uses: dict[str, Any]
    make: Callable[[Parts], Aligning]


ALGORITHMS = {
    "ddpo_sf": Recipe("score function, one update an epoch (Black et al. 2023)",
                      {key: value for key, value in POLICY.items() if key not in ("updates", "passes")},
                      recipes.ratio_gradient),
    "ddpo_is": Recipe("importance sampling and PPO's clip (Black et al. 2023)", {**POLICY, "clip_nats": 1.0},
                      recipes.ratio_gradient),
    "dpok": Recipe("the same with the KL to the reference (Fan et al. 2023)",
                   {**POLICY, "clip_nats": 1.0, "kl": 0.03}, recipes.ratio_gradient),
    "grpo": Recipe("the same with group advantages (Flow-GRPO, Liu et al. 2025)",
                   {**{key: value for key, value in POLICY.items() if key != "advantage"}, "clip_nats": 1.0,
                    "group": 8, "global_std": False, "same_start": False}, recipes.ratio_gradient),
    "rwr": Recipe("reward-weighted regression (Peters & Schaal 2007)", {**FORWARD, "limit": 5.0, "beta": 1.0},
                  recipes.weighted(recipes.exponential)),
    "filtered": Recipe("sparse reward-weighted regression: the best alone", {**FORWARD, "keep": 0.1},
                       recipes.weighted(recipes.filtered)),
    "sft": Recipe("fine-tuning on the best of one draw",
                  {**RATE, "epochs": 40, "samples": 4096, "updates": 8, "lr": 1e-4, "keep": 0.1, "advantage": "prompt"},
                  recipes.supervised),
    "diffusion_dpo": Recipe("Diffusion-DPO of own pairs, or of a file (Wallace et al. 2023)",
                            {**PAIRED, "beta": 2000.0, "preferences": None}, recipes.preferred),
    "d3po": Recipe("step-wise DPO of own pairs (Yang et al. 2023)",
                   {**PAIRED, "beta": 0.1, "clip_nats": None, "fraction": 1.0}, recipes.stepwise),
    "draft": Recipe("backpropagation of the reward (DRaFT-K, Clark et al. 2024)",
                    {**RATE, "epochs": 40, "samples": 256, "updates": 4, "lr": 1e-4, "last": 1, "random": False},
                    recipes.through_sampler),
    "nft": Recipe("DiffusionNFT (Zheng et al. 2025)", {**FORWARD, "limit": 1.0, "beta": 1.0}, recipes.negative_aware),
}


def build(name: str, sampler: Sampler, reward: Reward, ask: Ask, *, settings: Mapping[str, Any] | None = None,
          decode: Callable[[Tensor], Tensor] | None = None,
          prompts: Callable[[Cond | None, int], Sequence[Any]] | None = None, seed: int = 0, rows: int | None = None,
          checkpoint: bool = False) -> Aligning:
    """The algorithm `name` (see ALGORITHMS) for the policy `sampler.denoiser`, whose inner module is what learns.

    settings: those given; None stands for the algorithm's own. The reference is the policy as it is now, or, where it
    has low-rank adapters, what is beneath them. rows, checkpoint: memory of replaying traces, as in `replay`.
    Raises ValueError for an unknown algorithm, and for settings that do nothing for it.
    """
    chosen = settle(name, **(settings or {}))
    names = prompts or (lambda cond, count: [None] * count)
    parts = Parts(name, sampler, reward, ask, chosen, decode, names, seed, {"rows": rows, "checkpoint": checkpoint})
    return ALGORITHMS[name].make(parts)


def settle(name: str, **given: Any) -> dict[str, Any]:
    """All settings of an algorithm, those given (not None) instead of its own. ValueError: see `build`."""
    if name not in ALGORITHMS:
        raise ValueError(f"no algorithm {name!r}{nearest(name, ALGORITHMS)}")
    uses = ALGORITHMS[name].uses
    given = {key: value for key, value in given.items() if value is not None}
    idle = [key for key in given if key not in uses]
    if idle:
        raise ValueError(f"{', '.join(idle)} {'does' if len(idle) == 1 else 'do'} nothing under {name}; it has the "
                         f"settings {', '.join(sorted(uses))}")
    chosen = {**uses, **given}
    if chosen.get("preferences") is not None:
        asked = [key for key in ("samples", "group", "pairs", "passes") if key in given]
        if asked:
            raise ValueError(f"{', '.join(asked)}: nothing is sampled where the preferences come from a file")
    for key in ("epochs", "updates", "samples"):
        if key in chosen and not (isinstance(chosen[key], int) and chosen[key] >= 1):
            raise ValueError(f"{key} must be a number >= 1, got {chosen[key]!r}")
    return chosen
