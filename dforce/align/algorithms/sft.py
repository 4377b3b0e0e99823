"""Supervised fine-tuning on the best of one large draw of the model as it was before, a fixed set."""

from dataclasses import dataclass

import torch

from dforce.align.algorithms.common import Advantage, Algorithm, Setup, aligning, credit_of, reference_of
from dforce.align.loop import Aligning
from dforce.align.losses import filtered_weight
from dforce.align.objectives import AlignObjective, regression
from dforce.align.on_policy import ORDER, OnPolicy, Samples
from dforce.align.shuffle import permutation
from dforce.core.tree import select

BUILDABLE = ("Supervised",)  # by name, in a configuration


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
        pool = OnPolicy(sampler._replace(denoiser=reference_of(sampler.denoiser)), setup.reward, setup.ask,
                        samples=self.samples, credit=credit_of(self.advantage, self.samples), traces=False,
                        decode=setup.decode, seed=setup.seed)
        source = BestOfPool(pool, self.keep, self.updates, setup.seed)
        objective = AlignObjective(sampler.denoiser, sampler.schedule, regression())
        return aligning(self, objective, source, self.updates, lambda epochs: self.samples)


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
                raise ValueError(f"{len(best)} samples were chosen, too few for {self.updates} updates an epoch: raise "
                                 "samples or keep")
            self.chosen = select(drawn, best)._replace(advantage=torch.ones(len(best)))
        epoch, part = divmod(step, self.updates)
        order = permutation(len(self.chosen.x), self.seed, epoch, ORDER)
        size = len(order) // self.updates
        return select(self.chosen, order[part * size:(part + 1) * size].to(self.chosen.x.device))
