"""How each family of algorithms is put together: loss, source, reference. By name: `dforce.align.algorithms`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.align.advantage import Credit, GroupAdvantage, PerPromptStats, clip_advantage, standardised
from dforce.align.backprop import direct_reward, starts
from dforce.align.loop import Aligning, KLControl
from dforce.align.lora import adapter_state, without_adapters
from dforce.align.losses import exponential_weight, filtered_weight
from dforce.align.objectives import (
    AlignObjective,
    Loss,
    Result,
    inner,
    nft,
    policy_gradient,
    preference,
    regression,
    stepwise_preference,
)
from dforce.align.on_policy import ORDER, Ask, OnPolicy, Sampler, Samples
from dforce.align.preferences import Preferences, best_against_worst, read_pairs
from dforce.align.rewards.protocol import Reward
from dforce.align.shuffle import permutation
from dforce.align.value import StepCredit
from dforce.config import nearest
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.loss import min_snr
from dforce.core.tree import select

BUFFER = 64  # rewards of a prompt that its mean and std are taken from


class Parts(NamedTuple):
    """What `build` was given. prompts: (cond, B) -> the prompts of a batch, for rewards asked by the loss itself."""

    name: str
    sampler: Sampler
    reward: Reward
    ask: Ask
    settings: dict[str, Any]
    decode: Callable[[Tensor], Tensor] | None
    prompts: Callable[[Cond | None, int], Sequence[Any]]
    seed: int
    how: dict[str, Any]  # of replaying traces: rows, checkpoint


# --------------------------------------------------------------------------------------------------- the recipes

def ratio_gradient(parts: Parts) -> Aligning:
    """DDPO and its kin: the KL to the reference is measured wherever it is steered or weighed."""
    own = parts.settings
    control = KLControl(own["kl"], own["kl_target"])
    fixed = {"clip_nats": own.get("clip_nats"), "fraction": own["fraction"], **parts.how}

    def loss(objective: AlignObjective, batch: Samples, generator: torch.Generator | None) -> Result:
        value, logs = policy_gradient(kl_weight=control.weight, **fixed)(objective, batch, generator)
        if "kl" in logs:
            control.see(logs["kl"])
        return value, logs

    reference = _before(parts.sampler.denoiser) if own["kl"] > 0 else None
    steps = None if own["gae"] is None else StepCredit(parts.sampler, own["gae"], seed=parts.seed)
    made = _online(parts, loss, reference, _credit(own), limit=own["limit"], control=control, prepare=steps)
    return replace(made, value=steps)


def weighted(weight: Callable[[Tensor, dict[str, Any]], Tensor]) -> Callable[[Parts], Aligning]:
    """Regression on own samples, weighted by how good each is among those of its prompt."""
    def make(parts: Parts) -> Aligning:
        own, credit = parts.settings, _credit(parts.settings)
        return _online(parts, regression(), None, credit, traces=False, turn=lambda value: weight(value, own))
    return make


def exponential(advantage: Tensor, own: dict[str, Any]) -> Tensor:
    return exponential_weight(clip_advantage(advantage, own["limit"]), own["beta"])


def filtered(advantage: Tensor, own: dict[str, Any]) -> Tensor:
    return filtered_weight(advantage, own["keep"])


def supervised(parts: Parts) -> Aligning:
    """The best of one large draw of the model as it was before, as a fixed set."""
    own = parts.settings
    pool = OnPolicy(parts.sampler._replace(denoiser=_before(parts.sampler.denoiser)), parts.reward, parts.ask,
                    samples=own["samples"], credit=_credit(own, own["samples"]), traces=False, decode=parts.decode,
                    seed=parts.seed)
    return _aligning(parts, AlignObjective(parts.sampler.denoiser, parts.sampler.schedule, regression()),
                     Chosen(pool, own["keep"], own["updates"], parts.seed), lambda epochs: own["samples"])


def preferred(parts: Parts) -> Aligning:
    own = parts.settings
    loss, reference = preference(beta=own["beta"], weight=min_snr()), _before(parts.sampler.denoiser)
    if own["preferences"] is None:
        return _online(parts, loss, reference, standardised, traces=False, prepare=best_against_worst(own["pairs"]))
    pairs = read_pairs(own["preferences"])
    shape = parts.sampler.shape
    if pairs.win.shape[1:] != torch.Size(shape):
        raise ValueError(f"{own['preferences']} holds pairs of shape {[*pairs.win.shape[1:]]} where this model makes "
                         f"{[*shape]}: they were made by, or for, another model")
    batches = Preferences(pairs, batch=max(1, len(pairs.win) // own["updates"]), seed=parts.seed)
    objective = AlignObjective(parts.sampler.denoiser, parts.sampler.schedule, loss, reference=reference)
    return _aligning(parts, objective, batches, lambda epochs: 0)


def stepwise(parts: Parts) -> Aligning:
    own = parts.settings
    loss = stepwise_preference(beta=own["beta"], clip_nats=own["clip_nats"], fraction=own["fraction"], **parts.how)
    return _online(parts, loss, _before(parts.sampler.denoiser), standardised, prepare=best_against_worst(own["pairs"]))


def negative_aware(parts: Parts) -> Aligning:
    """Its reference is the policy that sampled, moved at the beginning of every epoch."""
    own = parts.settings
    old = copy.deepcopy(parts.sampler.denoiser)
    return _online(parts, nft(beta=own["beta"], limit=own["limit"]), old, _credit(own), traces=False, sync=True)


def through_sampler(parts: Parts) -> Aligning:
    """The gradient of a differentiable reward through the last steps of the sampler; every update has its own runs."""
    own, sampler = parts.settings, parts.sampler
    if sampler.std is not None or sampler.min_std > 0:
        raise ValueError("draft goes through a sampler of eta alone: leave std and min_std out")

    def value(x0: Tensor, cond: Cond | None) -> Tensor:
        shown = parts.decode(x0) if parts.decode else x0
        return parts.reward(shown, parts.prompts(cond, len(x0)), [None] * len(x0))

    loss = direct_reward(value, sampler.matrix, last=own["last"], random=own["random"], eta=sampler.eta,
                         order=sampler.order, checkpoint=parts.how["checkpoint"])
    batches = starts(parts.ask, own["samples"] // own["updates"], tuple(sampler.shape), seed=parts.seed)
    return _aligning(parts, AlignObjective(sampler.denoiser, sampler.schedule, loss), batches,
                     lambda epochs: epochs * own["samples"])


# --------------------------------------------------------------------------------------------------------- parts

class Chosen:
    """batch_at(step): the best `keep` of what `pool` draws once, in `updates` batches an epoch, all of weight 1."""

    def __init__(self, pool: OnPolicy, keep: float, updates: int, seed: int):
        self.pool, self.keep, self.updates, self.seed = pool, keep, updates, seed
        self.chosen: Samples | None = None

    def __call__(self, step: int) -> Samples:
        if self.chosen is None:
            drawn = self.pool.draw(0)
            best = (filtered_weight(drawn.advantage, self.keep) > 0).nonzero().flatten()
            if len(best) < self.updates:
                raise ValueError(f"{len(best)} samples were chosen, too few for {self.updates} updates an epoch: raise "
                                 "samples or keep")
            self.chosen = select(drawn, best)._replace(advantage=torch.ones(len(best)))
        epoch, part = divmod(step, self.updates)
        order = permutation(len(self.chosen.x), self.seed, epoch, ORDER)
        size = len(order) // self.updates
        return select(self.chosen, order[part * size:(part + 1) * size].to(self.chosen.x.device))


def _before(policy: Denoiser) -> Denoiser:
    """The policy as it is now: beneath its adapters if it has any, else a copy that does not learn."""
    if adapter_state(inner(policy)):
        return without_adapters(policy)
    reference = copy.deepcopy(policy)
    inner(reference).requires_grad_(False).eval()
    return reference


def _credit(own: Mapping[str, Any], buffer: int = BUFFER) -> Credit:
    if "advantage" not in own:
        return GroupAdvantage(global_std=own["global_std"])
    kinds: dict[str, Callable[[], Credit]] = {
        "prompt": lambda: PerPromptStats(buffer, min(16, buffer)), "batch": lambda: standardised,
        "group": GroupAdvantage}
    if own["advantage"] not in kinds:
        raise ValueError(f"no advantage {own['advantage']!r}{nearest(str(own['advantage']), kinds)}")
    return kinds[own["advantage"]]()


def _online(parts: Parts, loss: Loss, reference: Denoiser | None, credit: Credit, *, limit: float | None = None,
            control: KLControl | None = None, sync: bool = False,
            turn: Callable[[Tensor], Tensor] = lambda advantage: advantage, **source: Any) -> Aligning:
    """An algorithm that samples anew every epoch. turn: of advantages into weights; source: more of `OnPolicy`."""
    own = parts.settings
    objective = AlignObjective(parts.sampler.denoiser, parts.sampler.schedule, loss, reference=reference)
    batches = OnPolicy(parts.sampler, parts.reward, parts.ask, samples=own["samples"], group=own["group"],
                       updates=own.get("updates", 1), passes=own.get("passes", 1), limit=limit, decode=parts.decode,
                       same_start=own.get("same_start", False), seed=parts.seed,
                       credit=lambda reward, prompts, group: turn(credit(reward, prompts, group)),
                       before=(lambda epoch: objective.sync()) if sync else None, **source)
    return _aligning(parts, objective, batches, lambda epochs: epochs * own["samples"],
                     credit if isinstance(credit, PerPromptStats) else None, control)


def _aligning(parts: Parts, objective: AlignObjective, source: Callable[[int], Any], queries: Callable[[int], int],
              credit: PerPromptStats | None = None, control: KLControl | None = None) -> Aligning:
    own = parts.settings
    per_epoch = own.get("updates", 1) * own.get("passes", 1)
    # Weight decay would pull at the weights whatever the reward says, and an average lags behind the policy.
    options = {"lr": own["lr"], "warmup": per_epoch, "decay": own["decay"], "weight_decay": 0.0, "ema": None,
               "precision": "fp32"}
    return Aligning(parts.name, own, objective, source, per_epoch, options, queries, credit, control)
