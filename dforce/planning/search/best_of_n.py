"""The best of several plans, and what makes one good: that it arrives, without leaps, and then early."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.noise import NoiseSource
from dforce.guidance.energy import Energy, energies
from dforce.planning.energy import goals_per_plan, position_columns
from dforce.planning.planner import DiffusionPlanner, name_of
from dforce.planning.search.sub_plans import BranchNoise

BUILDABLE = ("BestOfN", "SoundArrival")  # by name, in a configuration


class SoundArrival:
    """Values of plans, from what they hold alone: sound ones, that arrive without a leap, are above all others.

    In (1, 2] sound plans, by the share of their time that is left when they arrive; in (0, 1] those that arrive and
    leap, by their longest step before that, s metres: 1 / (1 + s); in (-1, 0] those that do not arrive, by the closest
    that they come, d metres: -d / (1 + d).

    radius: metres from the goal that count as there. leap: how many times as long as the plan's median step before it
    arrives a leap is, at least.
    """

    sound = 1.0  # values above it are of sound plans

    def __init__(self, goal: Tensor, *, radius: float = 0.4, leap: float = 5.0, columns: slice | None = None):
        if radius <= 0 or leap <= 1:
            raise ValueError(f"want radius > 0 and leap > 1, got {radius} and {leap}")
        self.goal, self.radius, self.leap = goal, radius, leap
        self.columns = position_columns(goal, columns)

    def __call__(self, plan: Tensor) -> Tensor:
        """Values [B] of physical plans [B, H, D] whose first row is where they start."""
        place, steps = plan[..., self.columns], torch.arange(plan.shape[1], device=plan.device)
        away = (place - goals_per_plan(self.goal, plan)).norm(dim=-1)
        first = torch.where(away <= self.radius, steps, len(steps)).amin(1)
        length = place.diff(dim=1).norm(dim=-1)
        due = torch.where(steps[1:] <= first[:, None], length, torch.nan)
        longest, median = due.nan_to_num(0.0).amax(1), due.nanmedian(1).values.nan_to_num(0.0)
        left, closest = (len(steps) - first) / len(steps), away.amin(1)
        value = torch.where(longest <= self.leap * median, 1 + left, 1 / (1 + longest))
        return torch.where(first < len(steps), value, -closest / (1 + closest))


@dataclass(frozen=True)
class BestOfN(DiffusionPlanner):
    """`DiffusionPlanner` n times from every start, in one batch, keeping the plan of the highest `selector` value.

    n: plans a start; n = 1 is `DiffusionPlanner`, exactly. rounds: where no plan of a start is sound, n others are made
    without guidance, so many times in all; then the best of all counts. It needs a selector that says what is sound.
    selector: goal [N, G] -> energy of physical plans [B, H + 1, D], the first row where they start (its action 0),
    -> [B]; None takes the guiding `energy`. It needs no gradient. The network's batch is n times `episodes`.
    """

    method = "best of n"  # in rows of `dforce plan`
    n: int = 8
    rounds: int = 1
    selector: Callable[[Tensor], Energy] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1 or self.rounds < 1:
            raise ValueError(f"n={self.n}, rounds={self.rounds}: give a number of plans to choose from, >= 1")

    @property
    def variant(self) -> dict[str, Any]:
        chosen = {} if self.selector is None else {"selector": name_of(self.selector)}
        return {**super().variant, "n": self.n, **({"rounds": self.rounds} if self.rounds > 1 else {}), **chosen}

    def _part(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource) -> Tensor:
        plans, values, sound = self._best(obs, goal, remaining, noise)
        device = self.schedule.alpha.device
        for number in range(1, self.rounds):
            rows = (values <= sound).nonzero()[:, 0]
            if not len(rows):
                break
            sample = (torch.arange(self.n)[:, None] * len(obs) + rows).flatten().to(device)
            fresh = BranchNoise(noise, torch.full_like(sample, number), sample, self.n * len(obs))
            unguided, some = self.with_(scale=0.0, progress=None), rows.numpy()
            others, worth, _ = unguided._best(obs[some], goal[some], remaining, fresh)
            better = worth > values[rows]
            plans[rows[better]], values[rows[better]] = others[better], worth[better]
        return plans

    def _best(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource,
              ) -> tuple[Tensor, Tensor, float]:
        """The best of n plans [N, H, D] of each start and its value [N]; above which value plans are sound."""
        # The plan is the slow dimension: the first len(obs) rows see the noise that they see when n = 1.
        plans = DiffusionPlanner._part(self, np.tile(obs, (self.n, 1)), np.tile(goal, (self.n, 1)), remaining, noise)
        judge = (self.selector or self.energy)(torch.tensor(goal, dtype=plans.dtype, device=plans.device))
        start = torch.zeros_like(plans[:, :1])
        start[:, 0, slice(*self.layout["observation"])] = torch.tensor(np.tile(obs, (self.n, 1)), dtype=plans.dtype)
        values, best = energies(judge, torch.cat([start, plans], 1)).view(self.n, -1).max(0)
        kept = plans.unflatten(0, (self.n, -1))[best, torch.arange(len(obs))]
        return kept, values, getattr(judge, "sound", -torch.inf)
