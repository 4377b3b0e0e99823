"""One guided row of a plan: the draws of Monte Carlo Tree Guidance batched, against one at a time."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dforce.benchmarks.speed.harness import Timings, Way, race
from dforce.benchmarks.speed.sizes import Sizes, maze_denoiser, parameters, random_batch
from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.schedule import Schedule
from dforce.guidance.monte_carlo import monte_carlo

TASK = "guided row"


def guidance_races(sizes: Sizes) -> list[Callable[[], Timings]]:
    """Times at every width and batch size."""
    return [partial(_one, sizes, width, size) for width in sizes.plan_widths for size in sizes.batches]


def away(x0: Tensor) -> Tensor:
    """An energy [B, T, D] -> [B] that costs next to nothing: minus the squared distance of all tokens from 1."""
    return -(x0 - 1).square().sum((1, 2))


def guidance_ways(sizes: Sizes, denoiser: Precond, schedule: Schedule, size: int) -> list[Way]:
    """x0_hat of the row in mid-pyramid, where all stages of denoising meet."""
    batch = random_batch(sizes, size)
    matrix = pyramid(schedule.grid(sizes.steps), sizes.tokens, 1)
    level = matrix[len(matrix) // 2].expand(size, -1).to(sizes.device)

    def draws(chunk: int) -> Tensor:
        guide = monte_carlo(denoiser, schedule, away, sizes.draws, scale=1e-3, chunk=chunk)
        with torch.no_grad():  # as in sampling; guidance switches gradients on where it needs them
            return guide(batch.x, level, guide.init_state(size, batch.cond), batch.cond)[0]

    return [Way("draws one at a time", lambda: draws(1)), Way("draws batched", lambda: draws(sizes.draws))]


def _one(sizes: Sizes, width: int, size: int) -> Timings:
    denoiser, schedule = maze_denoiser(sizes, width)
    variant = {"width": width, "parameters": parameters(denoiser), "batch": size, "tokens": sizes.tokens,
               "draws": sizes.draws}
    raced = race(guidance_ways(sizes, denoiser, schedule, size), rounds=sizes.rounds, seconds=sizes.seconds)
    return raced.measured(TASK, variant)
