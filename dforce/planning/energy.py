"""Goal and reward energies: log-potentials of plans in physical units, [B, H, D] -> [B], larger is better.

Plans are whole, unstacked and denormalised, raw tokens (action first, then observation) last. The position stands
behind an action of its own width, unless `columns` says otherwise. `reduce`: how Monte Carlo guidance combines draws;
a sum of distances wants the mean; energies in nats want log-mean-exp, goal energies their moments.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dforce.data.batch import unstack
from dforce.data.normalize import Affine

BUILDABLE = ("SumOfDistances", "Reach", "Terminal", "Reward")  # by name, in a configuration


def goals_per_plan(goal: Tensor, plan: Tensor) -> Tensor:
    """Goals [G], or [B, G] for plans of n draws [n B, H, D] (draw the slow dimension), as [n B, 1, G]."""
    if goal.ndim == 1:
        return goal.expand(len(plan), 1, -1)
    if len(plan) % len(goal):
        raise ValueError(f"{len(plan)} plans for {len(goal)} goals: give one goal, or one a plan")
    return goal.repeat(len(plan) // len(goal), 1)[:, None]


def position_columns(goal: Tensor, columns: slice | None = None) -> slice:
    """Columns of the position in a raw token: those given, else those behind an action that is as wide as the goal."""
    return slice(goal.shape[-1], 2 * goal.shape[-1]) if columns is None else columns


class SumOfDistances:
    """-sum_t |p_t - goal|, the guidance of the Diffusion Forcing paper (appendix D.4). goal: [G] or [B, G]."""

    reduce = "mean"

    def __init__(self, goal: Tensor, columns: slice | None = None):
        self.goal, self.columns = goal, position_columns(goal, columns)

    def __call__(self, plan: Tensor) -> Tensor:
        away = plan[..., self.columns] - goals_per_plan(self.goal, plan)
        # A distance has no gradient at 0, and a held plan sits there: round the tip off at a millimetre.
        return -(away.square().sum(-1) + 1e-6).sqrt().sum(1)


class Reach:
    """log sum_t exp(-|p_t - goal|^2 / (2 std^2) - hurry t): to come by the goal; std in metres, hurry in nats."""

    reduce = "logmeanexp"

    def __init__(self, goal: Tensor, *, std: float = 0.5, hurry: float = 0.02, columns: slice | None = None):
        self.goal, self.std, self.hurry = goal, std, hurry
        self.columns = position_columns(goal, columns)

    def __call__(self, plan: Tensor) -> Tensor:
        away = (plan[..., self.columns] - goals_per_plan(self.goal, plan)).square().sum(-1)
        late = self.hurry * torch.arange(plan.shape[1], device=plan.device)
        return (-away / (2 * self.std**2) - late).logsumexp(1)


class Terminal:
    """log N(goal; p_H, std^2), up to a constant: to be at the goal at the end. goal: [G] or [B, G], std in metres."""

    reduce = "gaussian"

    def __init__(self, goal: Tensor, *, std: float = 0.2, columns: slice | None = None):
        self.goal, self.std, self.columns = goal, std, position_columns(goal, columns)

    def features(self, plan: Tensor) -> Tensor:
        """The last position, [n B, G]."""
        return plan[:, -1, self.columns]

    def __call__(self, plan: Tensor) -> Tensor:
        return -(self.features(plan) - goals_per_plan(self.goal, plan)[:, 0]).square().sum(-1) / (2 * self.std**2)


class Reward:
    """sum_t sigmoid((radius - |p_t - goal|) / softness): the sparse maze reward, softened so that it has a gradient."""

    reduce = "mean"

    def __init__(self, goal: Tensor, *, radius: float = 0.5, softness: float = 0.1, columns: slice | None = None):
        self.goal, self.radius, self.softness = goal, radius, softness
        self.columns = position_columns(goal, columns)

    def __call__(self, plan: Tensor) -> Tensor:
        away = ((plan[..., self.columns] - goals_per_plan(self.goal, plan)).square().sum(-1) + 1e-6).sqrt()
        return torch.sigmoid((self.radius - away) / self.softness).sum(1)


class Physical:
    """An energy of plans in physical units as an energy of the network's tokens [B, T, stack * D]."""

    def __init__(self, energy: Any, normalizer: Affine, stack: int):
        self.energy, self.normalizer, self.stack = energy, normalizer, stack
        self.reduce = getattr(energy, "reduce", "logmeanexp")
        if hasattr(energy, "features"):
            self.goal, self.std = energy.goal, energy.std
            self.features: Callable[[Tensor], Tensor] = lambda x0: energy.features(self.plan(x0))

    def plan(self, x0: Tensor) -> Tensor:
        """[B, T, stack * D] normalised -> [B, T * stack, D] physical."""
        return self.normalizer.denormalize(unstack(x0, self.stack))

    def __call__(self, x0: Tensor) -> Tensor:
        return self.energy(self.plan(x0))
