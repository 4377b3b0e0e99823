"""How long a robot waits for a plan, 600 steps, unguided and under Monte Carlo Tree Guidance; and for one row of it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dforce.benchmarks.speed.harness import Timings, Way, median_row, race
from dforce.benchmarks.speed.sizes import ACTION, Sizes, maze_denoiser, parameters, random_batch
from dforce.core.denoiser import Denoiser, Precond
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.data.batch import unstack
from dforce.guidance.monte_carlo import monte_carlo

TASK, ROW = "plan, default planner", "guided row"
STEPS, DRAWS, LOOKAHEAD = 20, 4, 2
SCALE = 1000.0  # an untrained network hardly hears its input: so much moves a plan by a few per cent


class Distances:
    """-sum over the plan of the distance from (1, 1), as planners are guided: tokens [B, T, stack * D] -> [B]."""

    reduce = "mean"

    def __init__(self, stack: int):
        self.stack = stack

    def __call__(self, x0: Tensor) -> Tensor:
        position = unstack(x0, self.stack)[..., ACTION:ACTION + 2]
        return -((position - 1).square().sum(-1) + 1e-6).sqrt().sum(1)


class one_by_one(monte_carlo):
    """The same guidance, every draw evaluated whole."""

    _shares = False


def planning_races(sizes: Sizes) -> list[Callable[[], Timings]]:
    """One plan: unguided, guided at delay 1 and at a quarter of the steps; then many episodes side by side."""
    steps = min(STEPS, sizes.steps)
    alone = [partial(_one, sizes, 1, delay, guided)
             for delay, guided in dict.fromkeys([(1, False), (1, True), (steps // 4, True)])]
    return [*alone, *(partial(_one, sizes, sizes.batches[-1], 1, guided) for guided in (False, True))]


def planning_ways(sizes: Sizes, batch: int, delay: int, guided: bool) -> list[Way]:
    """From noise to plans [batch, T, stack * D], the slower way first; many guided plans by the faster one alone."""
    denoiser, schedule = maze_denoiser(sizes, sizes.width)
    denoiser.requires_grad_(False)  # as the planner does: guidance differentiates in the plan, not in the weights
    given, draws = random_batch(sizes, batch), min(DRAWS, sizes.draws)
    matrix = pyramid(schedule.grid(min(STEPS, sizes.steps)), sizes.tokens, delay)

    def plan(guide: Denoiser, path: str = "auto") -> Tensor:
        return generate(guide, schedule, matrix, given.x, cond=given.cond, noise=Noise(0), path=path)  # type: ignore[arg-type]

    if not guided:
        return [Way("unguided, rows", lambda: plan(denoiser, "rows")), Way("unguided", lambda: plan(denoiser))]
    tree = [partial(plan, kind(denoiser, schedule, Distances(sizes.stack), draws, lookahead=LOOKAHEAD, scale=SCALE,
                               noise=Noise(0))) for kind in (one_by_one, monte_carlo)]
    shared = Way(f"MCTG, {draws} draws", tree[1], tolerance=1e-3)  # the same sums in another order, over all rows
    return [Way(f"MCTG, {draws} draws one by one", tree[0]), shared] if batch == 1 else [shared]


def _one(sizes: Sizes, batch: int, delay: int, guided: bool) -> Timings:
    denoiser, _ = maze_denoiser(sizes, sizes.width)
    variant = {"width": sizes.width, "parameters": parameters(denoiser), "batch": batch, "tokens": sizes.tokens,
               "steps": min(STEPS, sizes.steps), "delay": delay, "threads": torch.get_num_threads()}
    raced = race(planning_ways(sizes, batch, delay, guided), rounds=sizes.rounds, seconds=sizes.seconds)
    measured = raced.measured(TASK, variant)
    if batch == 1:
        return measured
    return measured._replace(rows=measured.rows + [
        median_row(TASK, name, "throughput", batch / seconds, variant=variant, unit="plans/s", higher=True)
        for name, seconds in raced.seconds.items()])


def guidance_races(sizes: Sizes) -> list[Callable[[], Timings]]:
    """Times at every width and batch size."""
    return [partial(_row, sizes, width, size) for width in sizes.plan_widths for size in sizes.batches]


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


def _row(sizes: Sizes, width: int, size: int) -> Timings:
    denoiser, schedule = maze_denoiser(sizes, width)
    variant = {"width": width, "parameters": parameters(denoiser), "batch": size, "tokens": sizes.tokens,
               "draws": sizes.draws}
    raced = race(guidance_ways(sizes, denoiser, schedule, size), rounds=sizes.rounds, seconds=sizes.seconds)
    return raced.measured(ROW, variant)
