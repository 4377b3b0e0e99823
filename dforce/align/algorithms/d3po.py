"""D3PO (Yang et al. 2023): step-wise DPO of pairs of own samples."""

from dataclasses import dataclass

from dforce.align.advantage import standardised
from dforce.align.algorithms.common import SampleLearning, Setup, reference_of
from dforce.align.loop import Aligning
from dforce.align.objectives import stepwise_preference
from dforce.align.preferences import best_against_worst

BUILDABLE = ("D3PO",)  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class D3PO(SampleLearning):
    """The keys are explained in configs/algorithm/d3po.yaml."""

    name = "d3po"
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
