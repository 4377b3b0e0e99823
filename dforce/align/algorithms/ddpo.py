"""DDPO (Black et al. 2023): the score function, and importance sampling under PPO's clip."""

from dataclasses import dataclass

from dforce.align.algorithms.common import Advantage, Algorithm, Setup, credit_of, ratio_gradient
from dforce.align.loop import Aligning

BUILDABLE = ("ScoreFunction", "ImportanceSampling")  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class ScoreFunction(Algorithm):
    """DDPO-SF: one update an epoch. The keys are explained in configs/algorithm/ddpo_sf.yaml."""

    name = "ddpo_sf"
    group: int = 1
    advantage: Advantage = "prompt"
    limit: float = 5.0
    fraction: float = 1.0
    kl: float = 0.0
    kl_target: float | None = None
    gae: float | None = None

    def prepare(self, setup: Setup) -> Aligning:
        return ratio_gradient(self, setup, credit_of(self.advantage), clip_nats=None)


@dataclass(frozen=True, kw_only=True)
class ImportanceSampling(Algorithm):
    """DDPO-IS: several updates an epoch. The keys are explained in configs/algorithm/ddpo_is.yaml."""

    name = "ddpo_is"
    updates: int = 4
    passes: int = 1
    group: int = 1
    advantage: Advantage = "prompt"
    limit: float = 5.0
    clip_nats: float = 1.0
    fraction: float = 1.0
    kl: float = 0.0
    kl_target: float | None = None
    gae: float | None = None

    def prepare(self, setup: Setup) -> Aligning:
        return ratio_gradient(self, setup, credit_of(self.advantage), clip_nats=self.clip_nats, updates=self.updates,
                              passes=self.passes)
