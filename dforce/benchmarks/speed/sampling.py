"""Sampling an unguided plan: double loop, rows and wavefronts; and what second order saves in network calls."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from dforce.benchmarks.speed.cost import launches
from dforce.benchmarks.speed.harness import Timings, Way, race
from dforce.benchmarks.speed.official import TokenByToken, double_loop
from dforce.benchmarks.speed.sizes import Sizes, maze_denoiser, parameters, random_batch
from dforce.core.denoiser import Cond, Denoiser, Precond
from dforce.core.matrix import autoregressive, pyramid
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.core.tree import State
from dforce.core.wavefront import wavefront
from dforce.data.batch import Batch
from dforce.guidance.wrapper import Wrapper
from dforce.report.rows import Row, make_row

TASK, CALLS = "plan, unguided", "network calls of a plan"
FIRST, SECOND = (100, 1), (20, 2)  # (steps, order) of equal law: 20 second-order steps beat 100 first-order ones


def sampling_races(sizes: Sizes) -> list[Callable[[], Timings]]:
    """Times at every width and batch size, and network calls."""
    timed = [partial(_one, sizes, width, size) for width in sizes.plan_widths for size in sizes.batches]
    return [*timed, partial(_calls, sizes)]


def sampling_ways(sizes: Sizes, denoiser: Precond, schedule: Schedule, batch: Batch) -> list[Way]:
    """From noise `batch.x` to a plan, the official way first. All are first order, as the official code is."""
    matrix = pyramid(schedule.grid(sizes.steps), sizes.tokens, 1)
    official = TokenByToken(denoiser.net)

    def ours(path: str) -> Callable[[], Tensor]:
        return lambda: generate(denoiser, schedule, matrix, batch.x, cond=batch.cond, order=1, path=path)  # type: ignore[arg-type]

    def bf16() -> Tensor:
        with torch.autocast(sizes.device.type, torch.bfloat16):
            return ours("wavefront")()

    def constant() -> Tensor:
        with torch.no_grad():
            return wavefront(denoiser, schedule, matrix[:, None].expand(-1, len(batch.x), -1).to(sizes.device), batch.x,
                             state=denoiser.init_state(len(batch.x), batch.cond), cond=batch.cond, eta=0.0, order=1,
                             noise=None, constant=True)

    return [Way("double loop, cell by cell", lambda: double_loop(official, schedule, matrix, batch.x, batch.cond)),
            Way("ours, every row whole", ours("double_loop")), Way("ours, rows", ours("rows")),
            Way("ours, wavefront", ours("wavefront")), Way("ours, constant wavefront", constant),
            *([Way("ours, wavefront, bf16", bf16, tolerance=5e-2)] if sizes.bf16 else [])]


def _one(sizes: Sizes, width: int, size: int) -> Timings:
    denoiser, schedule = maze_denoiser(sizes, width)
    variant = {"width": width, "parameters": parameters(denoiser), "batch": size, "tokens": sizes.tokens,
               "steps": sizes.steps}
    ways = sampling_ways(sizes, denoiser, schedule, random_batch(sizes, size))
    raced = race(ways, rounds=sizes.rounds, seconds=sizes.seconds)
    measured = raced.measured(TASK, variant)
    if (width, size) == (sizes.plan_widths[0], sizes.batches[0]):  # they depend on neither
        small = sampling_ways(sizes, *maze_denoiser(sizes, 8), random_batch(sizes, 1))
        measured = measured._replace(rows=measured.rows + [
            make_row(TASK, way.name, "launches", launches(way.run), n=1, variant=variant, unit="kernels", higher=False)
            for way in small])
    return measured


class Counted(Wrapper):
    """A denoiser that counts: `calls` of the network with its head, and the `tokens` [B T] that they evaluated."""

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser)
        self.calls, self.tokens = 0, 0

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        self.calls, self.tokens = self.calls + 1, self.tokens + level.numel()
        return self.denoiser(x, level, state, cond)


def _calls(sizes: Sizes) -> Timings:
    """20 second-order steps against 100 first-order ones: next-token rollout, and the wavefront of a pyramid."""
    rows: list[Row] = []
    small, schedule = maze_denoiser(sizes, 8)
    batch = random_batch(sizes, 1)
    for matrix, path in (("autoregressive", "rows"), ("pyramid, delay 1", "wavefront")):
        counts = []
        for steps, order in (FIRST, SECOND):
            grid, counted = schedule.grid(steps), Counted(small)
            levels = autoregressive(grid, sizes.tokens) if path == "rows" else pyramid(grid, sizes.tokens, 1)
            generate(counted, schedule, levels, batch.x, cond=batch.cond, order=order, path=path)  # type: ignore[arg-type]
            counts.append((counted.calls, counted.tokens))
            method = f"{steps} steps, order {order}"
            variant = {"matrix": matrix, "path": path, "tokens": sizes.tokens}
            for metric, count, first in zip(("calls", "tokens evaluated"), counts[-1], counts[0], strict=True):
                rows.append(make_row(CALLS, method, metric, count, n=1, variant=variant, higher=False))
                rows.append(make_row(CALLS, method, f"fewer {metric}", first / count, n=1, variant=variant,
                                     unit="times fewer"))
    return Timings(rows, [])
