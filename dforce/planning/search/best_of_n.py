"""Best of n: sample n plans from a start, keep the one that an energy likes best. The simple rival of tree search."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.noise import NoiseSource
from dforce.guidance.energy import Energy, energies
from dforce.planning.planner import DiffusionPlanner

BUILDABLE = ("BestOfN",)  # by name, in a configuration


@dataclass(frozen=True)
class BestOfN(DiffusionPlanner):
    """`DiffusionPlanner` n times from every start, in one batch, keeping the plan of the highest `selector` energy.

    n: plans a start; n = 1 is `DiffusionPlanner`, exactly. selector: goal [N, G] -> energy of physical plans
    [B, H, D] -> [B]; None takes the guiding `energy`. It needs no gradient. The network's batch is n times `episodes`.
    """

    method = "best of n"  # in rows of `dforce plan`
    n: int = 8
    selector: Callable[[Tensor], Energy] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"n={self.n}: give the number of plans to choose from, >= 1")

    @property
    def variant(self) -> dict[str, Any]:
        """Settings that name this planner in a row of results."""
        chosen = {} if self.selector is None else {"selector": name_of(self.selector)}
        return {**super().variant, "n": self.n, **chosen}

    def _part(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource) -> Tensor:
        # The plan is the slow dimension: the first len(obs) rows see the noise that they see when n = 1.
        plans = DiffusionPlanner._part(self, np.tile(obs, (self.n, 1)), np.tile(goal, (self.n, 1)), remaining, noise)
        judge = (self.selector or self.energy)(torch.tensor(goal, dtype=plans.dtype, device=plans.device))
        best = energies(judge, plans).view(self.n, -1).argmax(0)
        return plans.unflatten(0, (self.n, -1))[best, torch.arange(len(obs))]


def name_of(made: Callable[..., Any]) -> str:
    """The name of an energy in rows of results: its class, and the arguments that a configuration gave it."""
    inner, given = getattr(made, "func", made), getattr(made, "keywords", {})
    return inner.__name__ + "".join(f" {key}={value}" for key, value in given.items())
