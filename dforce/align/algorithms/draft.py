"""DRaFT-K (Clark et al. 2024): the gradient of a differentiable reward through the last steps of the sampler."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dforce.align.algorithms.common import Algorithm, Setup, aligning
from dforce.align.backprop import RunStarts, direct_reward, starts
from dforce.align.loop import Aligning
from dforce.align.objectives import AlignObjective
from dforce.align.on_policy import Query

BUILDABLE = ("DRaFT",)  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class DRaFT(Algorithm):
    """Every update has its own runs. The keys are explained in configs/algorithm/draft.yaml."""

    name = "draft"
    updates: int = 4
    lr: float = 1e-4
    last: int = 1
    random: bool = False

    def prepare(self, setup: Setup) -> Aligning:
        sampler = setup.sampler
        if sampler.std is not None or sampler.min_std > 0:
            raise ValueError("draft goes through a sampler of eta alone: leave std and min_std out")

        query = Query([])  # what the batch of now was asked for

        def ask(count: int, generator: torch.Generator) -> Query:
            nonlocal query
            query = setup.ask(count, generator)
            return query

        def value(x0: Tensor, batch: RunStarts) -> Tensor:
            shown, rows = setup.decode(x0) if setup.decode else x0, batch.row.tolist()
            metadata = query.metadata or [None] * len(query.prompts)
            return setup.reward(shown, [query.prompts[row] for row in rows], [metadata[row] for row in rows])

        loss = direct_reward(value, sampler.matrix, last=self.last, random=self.random, eta=sampler.eta,
                             order=sampler.order, checkpoint=setup.checkpoint)
        batches = starts(ask, self.samples // self.updates, tuple(sampler.shape), seed=setup.seed)
        return aligning(self, AlignObjective(sampler.denoiser, sampler.schedule, loss), batches, self.updates,
                        lambda epochs: epochs * self.samples)
