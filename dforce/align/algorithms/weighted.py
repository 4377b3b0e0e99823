"""Regression on own samples, weighted by how good each is among those of its prompt."""

from dataclasses import dataclass

from dforce.align.advantage import clip_advantage
from dforce.align.algorithms.common import Advantage, SampleLearning, Setup, credit_of
from dforce.align.loop import Aligning
from dforce.align.losses import exponential_weight, filtered_weight
from dforce.align.objectives import regression

BUILDABLE = ("RewardWeighted", "Filtered")  # by name, in a configuration


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
