"""The training step (forward, backward, clipping, AdamW) against the official structure at equal size."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dforce.benchmarks.speed.cost import flops, gemm_peak, launches, peak_memory
from dforce.benchmarks.speed.harness import Race, Timings, Way, median_row, race
from dforce.benchmarks.speed.official import OfficialObjective, TokenByToken
from dforce.benchmarks.speed.sizes import QUICK, Sizes, maze_denoiser, parameters, random_batch
from dforce.core.denoiser import Precond
from dforce.data.batch import Batch
from dforce.report.rows import Row, make_row
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective
from dforce.train.precision import Precision

TASK = "training step"
Name = Literal["fp32", "bf16"]
DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Of loss and gradient, as a part of them: float32 rounds in another order; bfloat16 has eight bits.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
WAYS: tuple[tuple[str, bool, Name], ...] = (
    ("whole network once a token, fp32", True, "fp32"), ("whole network once a token, bf16", True, "bf16"),
    ("ours, fp32", False, "fp32"), ("ours, bf16", False, "bf16"))


def train_step_races(sizes: Sizes) -> list[Callable[[], Timings]]:
    """Time, fraction of the measured GEMM peak, kernel launches and memory of a step, at every width."""
    return [partial(_one_width, sizes, width) for width in sizes.widths]


def objective(sizes: Sizes, width: int, *, once_a_token: bool) -> ForcingObjective:
    """The loss of the default planner, its network thin or run whole once a token, with the same weights."""
    denoiser, schedule = maze_denoiser(sizes, width)
    if once_a_token:
        denoiser = Precond(TokenByToken(denoiser.net), schedule).to(sizes.device)
    return ForcingObjective(denoiser, schedule)


def loss_and_gradient(objective: nn.Module, batch: Batch, precision: Name) -> list[Tensor]:
    """The loss [] and all gradients in one vector, of a copy: the objective keeps none."""
    objective = deepcopy(objective)
    loss = _forward(objective, batch, precision)
    loss.backward()
    return [loss.detach(), torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])]


def _forward(objective: nn.Module, batch: Batch, precision: Name) -> Tensor:
    device = batch.x.device
    with Precision(precision, "asked for").autocast(device):
        return objective(batch, torch.Generator(device).manual_seed(0))[0]


def fit_stepper(objective: nn.Module, batch: Batch, precision: Name) -> Callable[[], Any]:
    """A function that does one step of `fit`, always on this batch."""
    logs = fit(objective, lambda step: batch, lr=1e-4, steps=10**9, decay="constant", ema=None, precision=precision,
               device=batch.x.device)
    return lambda: next(logs)


def _one_width(sizes: Sizes, width: int) -> Timings:
    batch = random_batch(sizes, sizes.train_batch)
    ways, chosen = [], [way for way in WAYS if sizes.bf16 or way[2] == "fp32"]
    for name, once_a_token, precision in chosen:
        built = objective(sizes, width, once_a_token=once_a_token)
        ways.append(Way(name, fit_stepper(deepcopy(built), batch, precision), tolerance=TOLERANCE[precision],
                        result=partial(loss_and_gradient, built, batch, precision)))
    raced = race(ways, rounds=sizes.rounds, seconds=sizes.seconds)
    variant = {"width": width, "parameters": parameters(maze_denoiser(sizes, width)[0]), "batch": sizes.train_batch,
               "tokens": sizes.tokens}
    measured = raced.measured(TASK, variant)
    return measured._replace(rows=measured.rows + _costs(sizes, chosen, variant, ways, raced))


def _costs(sizes: Sizes, chosen: list[tuple[str, bool, Name]], variant: dict[str, Any], ways: list[Way],
           raced: Race) -> list[Row]:
    rows = []
    batch = random_batch(QUICK._replace(tokens=sizes.tokens, stack=sizes.stack, device=sizes.device), 2)
    work = flops(ways[0].run)
    for (name, once_a_token, precision), way in zip(chosen, ways, strict=True):
        peak = gemm_peak(DTYPE[precision], sizes.device, sides=sizes.sides)
        rate = work / raced.seconds[name]
        rows.append(median_row(TASK, name, "rate", rate / 1e9, variant=variant, unit="GFLOP/s", higher=True))
        rows.append(median_row(TASK, name, "of GEMM peak", rate / peak, variant=variant,
                               unit="fraction, in the same dtype", higher=True))
        # How many kernels start depends on no width and no batch size, so a small network tells.
        small = fit_stepper(objective(sizes, 8, once_a_token=once_a_token), batch, precision)
        small()
        rows.append(make_row(TASK, name, "launches", launches(small), n=1, variant=variant, unit="kernels",
                             higher=False))
        rows.append(make_row(TASK, name, "peak memory", peak_memory(way.run), n=1, variant=variant, unit="MB",
                             higher=False))
    schedule = maze_denoiser(sizes, 8)[1]
    theirs = fit_stepper(OfficialObjective(schedule, sizes.numbers, latent=8, hidden=8).to(sizes.device), batch, "fp32")
    theirs()
    rows.append(make_row(TASK, "official layers and loss, once a token", "launches", launches(theirs), n=1,
                         variant=variant, unit="kernels", higher=False))
    return rows
