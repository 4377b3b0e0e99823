"""One step of sampling: the denoiser's estimate, its second-order extrapolation, the transition, the draw."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.schedule import Schedule
from dforce.core.transition import Euler, Gaussian, transition
from dforce.core.tree import State


class Memory(NamedTuple):
    """Estimates x0 [B, T, *E] of the tokens' last moves and their levels [B, T]; not above the present one: none."""

    x0: Tensor
    level: Tensor


class Step(NamedTuple):
    """One row of sampling."""

    x: Tensor         # [B, T, *E] after the step
    x0: Tensor        # [B, T, *E] the denoiser's estimate
    kernel: Gaussian  # the distribution that x was drawn from
    level: Tensor     # [B, T] levels before
    to: Tensor        # [B, T] levels after
    ancestors: Tensor | None = None  # [B] where the draw resampled its particles: row b continues row ancestors[b]

# A draw decides the noise of a step: (step whose x is still the old one, noise [B, T, *E]) -> (next x, ancestors).
Draw = Callable[[Step, Tensor], tuple[Tensor, Tensor | None]]

# An explicit std: a number, [B, T], or a rule (level [B, T], to [B, T]) -> [B, T], for one that falls along the path.
Std = Tensor | float | Callable[[Tensor, Tensor], Tensor | Euler]


def gaussian_draw(step: Step, noise: Tensor) -> tuple[Tensor, None]:
    """The ordinary draw: mean + std * noise."""
    return step.kernel.sample(noise), None


def no_memory(x: Tensor) -> Memory:
    """The memory of tokens x [B, T, *E] that have not moved yet."""
    return Memory(torch.zeros_like(x), torch.zeros(x.shape[:2], dtype=torch.long, device=x.device))


def forget(memory: Memory, where: Tensor) -> Memory:
    """The memory without the tokens `where` [B, T]; call it when tokens are noised again."""
    return memory._replace(level=memory.level.masked_fill(where, 0))


def extrapolate(schedule: Schedule, x0: Tensor, level: Tensor, to: Tensor, memory: Memory) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2) per token: x0 + (x0 - x0_prev) h / (2 h_prev), h in half log-SNR.

    First order where a token has no memory, is held, or moves to level 0. With eta = 1 it is SDE-DPM-Solver++(2M).
    """
    factor = extrapolation(schedule, level, to, memory.level)
    return x0 + factor.view(level.shape + (1,) * (x0.ndim - 2)).to(x0.dtype) * (x0 - memory.x0)


def extrapolation(schedule: Schedule, level: Tensor, to: Tensor, before: Tensor) -> Tensor:
    """The factor h / (2 h_prev) of `extrapolate`, float64, for a last move at level `before`; 0 for first order."""
    half = 0.5 * schedule.log_snr(torch.stack([level, to, before]))
    step, last = half[1] - half[0], half[0] - half[2]
    usable = (before > level) & (to < level) & (to > 0) & (last > 0)
    return torch.where(usable, step / (2 * last).where(usable, 1.0), 0.0)


def advance(denoiser: Denoiser, schedule: Schedule, x: Tensor, level: Tensor, to: Tensor, state: State,
            cond: Cond | None = None, *, memory: Memory, eta: float = 0.0, order: int = 2, draw: Draw = gaussian_draw,
            noise: Tensor | Callable[[], Tensor] | None = None, std: Std | None = None, min_std: float = 0.0,
            ) -> tuple[Step, Memory, State]:
    """One pure step of tokens x [B, T, *E] from `level` to `to` [B, T]: the step, the memory and the state after it.

    eta, std, min_std: as in `transition`. order: 1 is DDIM/DDPM, 2 is 2M. noise: standard normal [B, T, *E], or a
    function that draws it, called once the network's activations are freed; None where eta = 0 needs none.
    """
    x0, state = denoiser(x, level, state, cond)
    mean = x0 if order == 1 else extrapolate(schedule, x0, level, to, memory)
    spread = std(level, to) if callable(std) else std
    kernel = transition(schedule, x, mean, level, to, eta=eta, std=spread, min_std=min_std)
    step = Step(x, x0, kernel, level, to)
    noise = noise() if callable(noise) else noise
    after, ancestors = (kernel.mean, None) if noise is None and draw is gaussian_draw else draw(
        step, torch.zeros_like(x) if noise is None else noise)
    moved = to < level
    shape = moved.shape + (1,) * (x0.ndim - 2)
    memory = Memory(torch.where(moved.view(shape), x0, memory.x0), torch.where(moved, level, memory.level))
    return step._replace(x=after, ancestors=ancestors), memory, state
