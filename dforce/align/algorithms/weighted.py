"""Learning from own samples by how good each is: weighted regression, a fixed set of the best, DiffusionNFT."""

from dataclasses import dataclass

import torch

from dforce.align.advantage import clip_advantage
from dforce.align.algorithms import common
from dforce.align.algorithms.common import Advantage, Algorithm, SampleLearning, Setup, credit_of
from dforce.align.loop import Aligning
from dforce.align.losses import exponential_weight, filtered_weight
from dforce.align.objectives import AlignObjective, nft, regression
from dforce.align.on_policy import ORDER, OnPolicy, Samples
from dforce.core.noise import permutation
from dforce.core.tree import select

BUILDABLE = ("RewardWeighted", "Filtered", "NFT", "Supervised")  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class RewardWeighted(SampleLearning):
    """Reward-weighted regression (Peters & Schaal 2007). The keys are explained in configs/algorithm/rwr.yaml."""

    name = "rwr"
    advantage: Advantage = "prompt"
    limit: float = 5.0
    beta: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        return self.learning(setup, regression(), credit_of(self.advantage), traces=False, weight=lambda value:
                             exponential_weight(clip_advantage(value, self.limit), self.beta))


@dataclass(frozen=True, kw_only=True)
class Filtered(SampleLearning):
    """Sparse reward-weighted regression: the best alone. The keys are explained in configs/algorithm/filtered.yaml."""

    name = "filtered"
    advantage: Advantage = "prompt"
    keep: float = 0.1

    def prepare(self, setup: Setup) -> Aligning:
        return self.learning(setup, regression(), credit_of(self.advantage), traces=False,
                             weight=lambda value: filtered_weight(value, self.keep))


@dataclass(frozen=True, kw_only=True)
class NFT(SampleLearning):
    """The reference is the policy that sampled. The keys are explained in configs/algorithm/nft.yaml."""

    name = "nft"
    advantage: Advantage = "prompt"
    limit: float = 1.0
    beta: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        return self.learning(setup, nft(beta=self.beta, limit=self.limit), credit_of(self.advantage),
                             reference=common.moving_copy(setup.sampler.denoiser), traces=False, sync=True)


@dataclass(frozen=True, kw_only=True)
class Supervised(Algorithm):
    """samples: of the one draw. The keys are explained in configs/algorithm/sft.yaml."""

    name = "sft"
    samples: int = 4096
    updates: int = 8
    lr: float = 1e-4
    advantage: Advantage = "prompt"
    keep: float = 0.1

    def prepare(self, setup: Setup) -> Aligning:
        sampler = setup.sampler
        before = sampler._replace(denoiser=common.reference_of(sampler.denoiser))
        pool = OnPolicy(before, setup.reward, setup.ask, samples=self.samples, traces=False, decode=setup.decode,
                        credit=credit_of(self.advantage, self.samples), seed=setup.seed)
        source = BestOfPool(pool, self.keep, self.updates, setup.seed)
        objective = AlignObjective(sampler.denoiser, sampler.schedule, regression())
        return common.aligning(self, objective, source, self.updates, lambda epochs: self.samples)


class BestOfPool:
    """batch_at(step): the best `keep` of what `pool` draws once, in `updates` batches an epoch, all of weight 1."""

    def __init__(self, pool: OnPolicy, keep: float, updates: int, seed: int):
        self.pool, self.keep, self.updates, self.seed = pool, keep, updates, seed
        self.chosen: Samples | None = None

    def __call__(self, step: int) -> Samples:
        if self.chosen is None:
            drawn = self.pool.draw(0)
            best = (filtered_weight(drawn.advantage, self.keep) > 0).nonzero().flatten()
            if len(best) < self.updates:
                raise ValueError(f"{len(best)} samples were chosen for {self.updates} updates: raise samples or keep")
            self.chosen = select(drawn, best)._replace(advantage=torch.ones(len(best)))
        epoch, part = divmod(step, self.updates)
        order = permutation(len(self.chosen.x), self.seed, epoch, ORDER)
        size = len(order) // self.updates
        return select(self.chosen, order[part * size:(part + 1) * size].to(self.chosen.x.device))
