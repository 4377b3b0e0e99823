"""Sampling an unguided plan: double loop, rows and wavefronts; and what second order saves in network calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dforce.benchmarks.speed.cost import launches
from dforce.benchmarks.speed.harness import Measured, Way, race, row
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

TASK, CALLS = "plan, unguided", "network calls of a plan"
FIRST, SECOND = (100, 1), (20, 2)  # (steps, order) of equal law: 20 second-order steps beat 100 first-order ones


def races(sizes: Sizes) -> list[Callable[[], Measured]]:
    """Times at every width and batch size, and network calls."""
    timed = [partial(_one, sizes, width, size) for width in sizes.plan_widths for size in sizes.batches]
    return [*timed, partial(_calls, sizes)]


def ways(sizes: Sizes, denoiser: Precond, schedule: Schedule, batch: Batch) -> list[Way]:
    """From noise `batch.x` to a plan, the official way first. All are first order, as the official code is."""
    matrix = pyramid(schedule.grid(sizes.steps), sizes.tokens, 1)
    official = TokenByToken(denoiser.net)  # type: ignore[arg-type]

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


def _one(sizes: Sizes, width: int, size: int) -> Measured:
    denoiser, schedule = maze_denoiser(sizes, width)
    variant = {"width": width, "parameters": parameters(denoiser), "batch": size, "tokens": sizes.tokens,
               "steps": sizes.steps}
    raced = race(ways(sizes, denoiser, schedule, random_batch(sizes, size)), rounds=sizes.rounds, seconds=sizes.seconds)
    measured = raced.measured(TASK, variant)
    if (width, size) == (sizes.plan_widths[0], sizes.batches[0]):  # they depend on neither
        small = ways(sizes, *maze_denoiser(sizes, 8), random_batch(sizes, 1))
        measured = measured._replace(rows=measured.rows + [
            row(task=TASK, method=way.name, variant=variant, metric="launches", samples=[launches(way.run)],
                unit="kernels", higher_is_better=False) for way in small])
    return measured


class Counted(Wrapper):
    """A denoiser that counts: `calls` of the network with its head, and the `tokens` [B T] that they evaluated."""

    def __init__(self, denoiser: Denoiser):
        super().__init__(denoiser)
        self.calls, self.tokens = 0, 0

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        self.calls, self.tokens = self.calls + 1, self.tokens + level.numel()
        return self.denoiser(x, level, state, cond)


def _calls(sizes: Sizes) -> Measured:
    """20 second-order steps against 100 first-order ones: next-token rollout, and the wavefront of a pyramid."""
    rows: list[dict[str, Any]] = []
    small, schedule = maze_denoiser(sizes, 8)
    batch = random_batch(sizes, 1)
    for matrix, path in (("autoregressive", "rows"), ("pyramid, delay 1", "wavefront")):
        counts = []
        for steps, order in (FIRST, SECOND):
            grid, counted = schedule.grid(steps), Counted(small)
            levels = autoregressive(grid, sizes.tokens) if path == "rows" else pyramid(grid, sizes.tokens, 1)
            generate(counted, schedule, levels, batch.x, cond=batch.cond, order=order, path=path)  # type: ignore[arg-type]
            counts.append((counted.calls, counted.tokens))
            about: dict[str, Any] = {"task": CALLS, "method": f"{steps} steps, order {order}",
                                     "variant": {"matrix": matrix, "path": path, "tokens": sizes.tokens}}
            for metric, count, first in zip(("calls", "tokens evaluated"), counts[-1], counts[0], strict=True):
                rows.append(row(**about, metric=metric, samples=[count], higher_is_better=False))
                rows.append(row(**about, metric=f"fewer {metric}", samples=[first / count], unit="times fewer"))
    return Measured(rows, [])
