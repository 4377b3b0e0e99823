"""Policy gradients: DDPO (Black et al. 2023), DPOK (Fan et al. 2023) and GRPO (Shao et al. 2024; Liu et al. 2025)."""

from dataclasses import dataclass

from dforce.align.advantage import GroupAdvantage
from dforce.align.algorithms.common import BUFFER, Advantage, PolicyGradient, Setup, credit_of
from dforce.align.loop import Aligning

BUILDABLE = ("ScoreFunction", "ImportanceSampling", "DPOK", "GRPO")  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class ScoreFunction(PolicyGradient):
    """DDPO-SF: one update an epoch. The keys are explained in configs/algorithm/ddpo_sf.yaml."""

    name = "ddpo_sf"
    advantage: Advantage = "prompt"
    buffer: int = BUFFER

    def prepare(self, setup: Setup) -> Aligning:
        return self.gradient(setup, credit_of(self.advantage, self.buffer))


@dataclass(frozen=True, kw_only=True)
class ImportanceSampling(PolicyGradient):
    """DDPO-IS: several updates an epoch. The keys are explained in configs/algorithm/ddpo_is.yaml."""

    name = "ddpo_is"
    updates: int = 4
    passes: int = 1
    advantage: Advantage = "prompt"
    buffer: int = BUFFER
    clip_nats: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        return self.gradient(setup, credit_of(self.advantage, self.buffer), clip_nats=self.clip_nats,
                             updates=self.updates, passes=self.passes)


@dataclass(frozen=True, kw_only=True)
class DPOK(ImportanceSampling):
    """Importance sampling and a weight on the KL. The keys are explained in configs/algorithm/dpok.yaml."""

    name = "dpok"
    kl: float = 0.03


@dataclass(frozen=True, kw_only=True)
class GRPO(PolicyGradient):
    """Group advantages under PPO's clip. The keys are explained in configs/algorithm/grpo.yaml."""

    name = "grpo"
    lr: float = 1.5e-5
    updates: int = 4
    passes: int = 1
    group: int = 8
    global_std: bool = False
    same_start: bool = False
    clip_nats: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        return self.gradient(setup, GroupAdvantage(global_std=self.global_std), clip_nats=self.clip_nats,
                             updates=self.updates, passes=self.passes, same_start=self.same_start)
