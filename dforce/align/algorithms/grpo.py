"""GRPO (Shao et al. 2024; Flow-GRPO, Liu et al. 2025): policy gradients by advantages within groups of one prompt."""

from dataclasses import dataclass

from dforce.align.advantage import GroupAdvantage
from dforce.align.algorithms.common import PolicyGradient, Setup
from dforce.align.loop import Aligning

BUILDABLE = ("GRPO",)  # by name, in a configuration


@dataclass(frozen=True, kw_only=True)
class GRPO(PolicyGradient):
    """Group advantages under PPO's clip. The keys are explained in configs/algorithm/grpo.yaml."""

    name = "grpo"
    updates: int = 4
    passes: int = 1
    group: int = 8
    global_std: bool = False
    same_start: bool = False
    clip_nats: float = 1.0

    def prepare(self, setup: Setup) -> Aligning:
        return self.gradient(setup, GroupAdvantage(global_std=self.global_std), clip_nats=self.clip_nats,
                             updates=self.updates, passes=self.passes, same_start=self.same_start)
