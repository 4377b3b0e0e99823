"""Diffusion-DPO (Wallace et al. 2023): preference pairs of own samples, or of a file."""

from dataclasses import dataclass

import torch

from dforce.align.advantage import standardised
from dforce.align.algorithms.common import SampleLearning, Setup, aligning, reference_of
from dforce.align.loop import Aligning
from dforce.align.objectives import AlignObjective, preference
from dforce.align.preferences import Preferences, best_against_worst, read_pairs
from dforce.core.loss import min_snr

BUILDABLE = ("DiffusionDPO",)  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class DiffusionDPO(SampleLearning):
    """preferences: a file of pairs; nothing is sampled then. The keys: see configs/algorithm/diffusion_dpo.yaml."""

    name = "diffusion_dpo"
    group: int = 8
    pairs: int = 2
    beta: float = 2000.0
    preferences: str | None = None

    def prepare(self, setup: Setup) -> Aligning:
        loss, sampler = preference(beta=self.beta, weight=min_snr()), setup.sampler
        reference = reference_of(sampler.denoiser)
        if self.preferences is None:
            return self.learning(setup, loss, standardised, reference=reference, traces=False,
                                 prepare=best_against_worst(self.pairs))
        pairs = read_pairs(self.preferences)
        if pairs.win.shape[1:] != torch.Size(sampler.shape):
            raise ValueError(f"{self.preferences} holds pairs of shape {[*pairs.win.shape[1:]]} where this model makes "
                             f"{[*sampler.shape]}: they were made by, or for, another model")
        batches = Preferences(pairs, batch=max(1, len(pairs.win) // self.updates), seed=setup.seed)
        objective = AlignObjective(sampler.denoiser, sampler.schedule, loss, reference=reference)
        return aligning(self, objective, batches, self.updates, lambda epochs: 0)
