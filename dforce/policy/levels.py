"""Noise levels for the training of policies whose observations are given: cloning, and diffusion of actions alone."""

from typing import Literal

import torch
from torch import Tensor

from dforce.core.loss import independent
from dforce.core.schedule import Schedule

BUILDABLE = ("observed",)  # by name, in a configuration


def observed(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None, *, cycle: int = 2,
             dropout: float = 0.0, noise: float = 0.0,
             actions: Literal["independent", "pure"] = "independent") -> Tensor:
    """Levels [B, T] of observation and action tokens in turn, the last of each `cycle` being the actions.

    dropout: share of the observation tokens that are pure noise. noise: the others carry noise of a standard deviation
    up to this, in those of the data, uniform over the levels. actions: each at a level of its own, or pure noise: a
    network that then predicts x0 regresses them on the observations.
    ValueError for a dropout outside 0..1.
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is the share of observations that are missing, in 0..1, got {dropout}")
    device = generator.device if generator is not None else None
    u, v = torch.rand((2, *shape), generator=generator, device=device)
    seen = torch.where(u < dropout, schedule.levels, (v * (schedule.nearest(noise) + 1)).long())
    acted = independent(schedule, shape, generator) if actions == "independent" else torch.full_like(
        seen, schedule.levels)
    return torch.where(torch.arange(shape[1], device=device) % cycle == cycle - 1, acted, seen)
