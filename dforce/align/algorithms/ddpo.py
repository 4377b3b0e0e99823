"""DDPO (Black et al. 2023): the score function, and importance sampling under PPO's clip."""

from dataclasses import dataclass

from dforce.align.algorithms.common import Advantage, PolicyGradient, Setup, credit_of
from dforce.align.loop import Aligning

BUILDABLE = ("ScoreFunction", "ImportanceSampling")  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class ScoreFunction(PolicyGradient):
    """DDPO-SF: one update an epoch. The keys are explained in configs/algorithm/ddpo_sf.yaml."""

    name = "ddpo_sf"
    advantage: Advantage = "prompt"

    def prepare(self, setup: Setup) -> Aligning:
        return self.gradient(setup, credit_of(self.advantage))


@dataclass(frozen=True, kw_only=True)
class ImportanceSampling(PolicyGradient):
    """DDPO-IS: several updates an epoch. The keys are explained in configs/algorithm/ddpo_is.yaml."""

    name = "ddpo_is"
    updates: int = 4
    passes: int = 1
    advantage: Advantage = "prompt"
    clip_nats: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        return self.gradient(setup, credit_of(self.advantage), clip_nats=self.clip_nats, updates=self.updates,
                             passes=self.passes)
