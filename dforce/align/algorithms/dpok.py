"""DPOK (Fan et al. 2023): policy gradients held back by the KL to the reference."""

from dataclasses import dataclass

from dforce.align.algorithms.common import Advantage, Algorithm, Setup, credit_of, ratio_gradient
from dforce.align.loop import Aligning

BUILDABLE = ("DPOK",)  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class DPOK(Algorithm):
    """Importance sampling and a weight on the KL. The keys are explained in configs/algorithm/dpok.yaml."""

    name = "dpok"
    updates: int = 4
    passes: int = 1
    group: int = 1
    advantage: Advantage = "prompt"
    limit: float = 5.0
    clip_nats: float = 1.0
    fraction: float = 1.0
    kl: float = 0.03
    kl_target: float | None = None
    gae: float | None = None

    def prepare(self, setup: Setup) -> Aligning:
        return ratio_gradient(self, setup, credit_of(self.advantage), clip_nats=self.clip_nats, updates=self.updates,
                              passes=self.passes)
