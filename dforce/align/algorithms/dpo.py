"""Preferences: Diffusion-DPO (Wallace et al. 2023), of pairs of own samples or of a file; D3PO (Yang et al. 2023)."""

from dataclasses import dataclass, fields

import torch

from dforce.align.advantage import standardised
from dforce.align.algorithms.common import SampleLearning, Setup, aligning, reference_of
from dforce.align.loop import Aligning
from dforce.align.objectives import AlignObjective, preference, stepwise_preference
from dforce.align.preferences import Preferences, best_against_worst, read_pairs
from dforce.core.loss import min_snr

BUILDABLE = ("DiffusionDPO", "D3PO")  # by name, in a configuration
OWN_PAIRS = ("samples", "group", "pairs", "passes")  # settings of pairs that are made of samples


@dataclass(frozen=True, kw_only=True)
class DiffusionDPO(SampleLearning):
    """preferences: a file of pairs; nothing is sampled then. The keys: see configs/algorithm/diffusion_dpo.yaml."""

    name = "diffusion_dpo"
    group: int = 8
    pairs: int = 2
    beta: float = 2000.0
    preferences: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        idle = {each.name for each in fields(self) if getattr(self, each.name) != each.default} & set(OWN_PAIRS)
        if self.preferences is not None and idle:
            raise ValueError(f"{', '.join(sorted(idle))} does nothing where the pairs come from a file "
                             f"({self.preferences}): leave it out, or preferences")

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


@dataclass(frozen=True, kw_only=True)
class D3PO(SampleLearning):
    """The keys are explained in configs/algorithm/d3po.yaml."""

    name = "d3po"
    lr: float = 1.5e-5
    group: int = 8
    pairs: int = 2
    beta: float = 0.1
    clip_nats: float | None = None
    fraction: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        loss = stepwise_preference(beta=self.beta, clip_nats=self.clip_nats, fraction=self.fraction, rows=setup.rows,
                                   checkpoint=setup.checkpoint)
        return self.learning(setup, loss, standardised, reference=reference_of(setup.sampler.denoiser),
                             prepare=best_against_worst(self.pairs))
