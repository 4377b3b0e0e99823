"""Everything stays on the device of its inputs: a GPU in both number formats, or meta tensors where there is none."""

from __future__ import annotations

import itertools
from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from dforce.core.denoiser import Precond
from dforce.core.loss import independent, pyramids, rising, teacher_forcing
from dforce.core.noise import Noise
from dforce.core.schedule import Schedule, linear
from dforce.core.step import advance, no_memory
from dforce.core.tree import leaves
from dforce.data.batch import Batch
from dforce.guidance.energy import guided
from dforce.guidance.inpaint import inpaint, padded
from dforce.guidance.monte_carlo import monte_carlo
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.temporal import TemporalUNet
from dforce.nets.transformer import TransformerNet
from dforce.planning.energy import Physical, Reach, SumOfDistances, Terminal
from dforce.train.objectives import ForcingObjective, InpaintingObjective

REAL = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if REAL else "meta")  # meta: shapes, formats and a device, but no numbers
STATIC = {"static": {"start": 4}}
NETS = {"recurrent": partial(RecurrentNet, (12,), width=16, depth=2, **STATIC),
        "transformer": partial(TransformerNet, (12,), width=16, depth=2, heads=2, context=4, **STATIC),
        "transformer without mask": partial(TransformerNet, (12,), width=16, depth=1, heads=2, causal=False, **STATIC),
        "temporal": partial(TemporalUNet, (12,), width=8, multipliers=(1, 2), goal=4, **STATIC)}
EVERY = pytest.mark.parametrize("name", NETS)
FORMATS = pytest.mark.parametrize("bf16", [False, *[True] * REAL])  # autocast knows no meta


def cast(bf16: bool) -> torch.autocast:
    return torch.autocast("cuda" if REAL else "cpu", torch.bfloat16, enabled=bf16)


@pytest.fixture
def schedule() -> Schedule:
    """With what is computed from its tables on a CPU, where there are numbers."""
    made = linear(10)
    made.grid(5)
    return made


def bed(name: str, schedule: Schedule, *, time: int = 6) -> tuple[Precond, Batch, Tensor]:
    """(denoiser, batch of 2, levels) on the device. The network is asked as planners do: frozen, not in training."""
    for table, buffer in schedule.named_buffers():
        schedule._buffers[table] = buffer.to(DEVICE)
    with DEVICE:
        denoiser = Precond(NETS[name](), schedule).eval().requires_grad_(False)
        mask, cond = torch.ones(2, time, dtype=torch.bool), {"static": {"start": torch.randn(2, 4)}}
        return denoiser, Batch(torch.randn(2, time, 12), mask, cond, mask[:, 0]), torch.randint(1, 11, (2, time))


def here(*tensors: Tensor) -> bool:
    return all(tensor.device == DEVICE for tensor in tensors)


@EVERY
@FORMATS
@pytest.mark.quick(2)
def test_networks_there_and_back(name, bf16, schedule):
    with cast(bf16):
        denoiser, batch, level = bed(name, schedule)
        for time, frozen in itertools.product((6, 1), (True, False)):
            denoiser.requires_grad_(not frozen)
            x = batch.x[:, :time].clone().requires_grad_()
            start = denoiser.init_state(2, batch.cond)
            x0, state = denoiser(x, level[:, :time], start, batch.cond)
            assert here(x0) and x0.dtype == torch.float32
            learning = [] if frozen else list(denoiser.parameters())
            found = torch.autograd.grad(x0.sum(), [x, *learning], allow_unused=True)
            assert here(*(gradient for gradient in found if gradient is not None))
            absorbed = [denoiser.absorb(x, level[:, :time], state, batch.cond)] if denoiser.causal else []
            for after in [state, *absorbed]:
                assert here(*leaves(after))
                assert [leaf.dtype for leaf in leaves(after)] == [leaf.dtype for leaf in leaves(start)]


@EVERY
@FORMATS
@pytest.mark.parametrize("levels", [independent, rising, partial(pyramids, steps=5), teacher_forcing],
                         ids=["independent", "rising", "pyramids", "teacher forcing"])
@pytest.mark.quick(4)
def test_losses(name, bf16, levels, schedule):
    with cast(bf16):
        denoiser, batch, _ = bed(name, schedule)
        denoiser.requires_grad_()
        generator, drawn = (torch.Generator(DEVICE), levels) if REAL else (None, drawing(levels))
        objective = ForcingObjective(denoiser, schedule, levels=drawn, carry=denoiser.causal)
        loss, logs, *carried = objective(batch, generator)
        loss.backward()
        assert here(loss, *logs.values(), *(p.grad for p in denoiser.parameters() if p.grad is not None))
        if carried:
            assert here(objective(batch, generator, *carried)[0])
        if not denoiser.causal:
            assert here(InpaintingObjective(denoiser, schedule, levels=drawn)(batch, generator)[0])


def drawing(levels):
    """Level samplers draw where the generator is, and a generator of a GPU that is not there cannot be had."""
    def draw(schedule, shape, generator):
        with DEVICE:
            return levels(schedule, shape, generator)
    return draw


class Normal:
    """A normaliser that changes nothing, and does not ask its statistics whether they are finite."""

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def denormalize(self, x):
        return x * self.std + self.mean


# Quick: every network under plain guidance, a causal and another one under each reduction of draws.
APART = {("logmeanexp", "transformer"), ("logmeanexp", "transformer without mask"), ("gaussian", "recurrent"),
         ("gaussian", "temporal")}


@pytest.mark.parametrize("reduce, name", [
    pytest.param(reduce, name, marks=[pytest.mark.slow] * (not REAL and (reduce, name) in APART))
    for reduce in ["plain", "logmeanexp", "gaussian", *["mean"] * REAL] for name in NETS])
@FORMATS
@pytest.mark.quick(3)
def test_a_guided_row(name, bf16, reduce, schedule, monkeypatch):
    if not REAL:  # they are found among the numbers of the tables
        monkeypatch.setattr(import_module("dforce.guidance.monte_carlo"), "jump_levels",
                            lambda schedule, lookahead: [5])
    with cast(bf16):
        denoiser, batch, level = bed(name, schedule)
        normalizer = Normal(torch.zeros(6, device=DEVICE), torch.ones(6, device=DEVICE))
        goal = torch.zeros(2, 2, device=DEVICE)
        kind = {"plain": SumOfDistances, "mean": SumOfDistances, "logmeanexp": Reach, "gaussian": Terminal}[reduce]
        if not denoiser.causal:
            last = torch.zeros_like(batch.x, dtype=torch.bool)
            denoiser = padded(denoiser, schedule, torch.randn(2, 2, 12, device=DEVICE))
            denoiser = inpaint(denoiser, batch.x, last, show="clean")
        energy = Physical(kind(goal), normalizer, 2)
        guide = guided(denoiser, schedule, energy) if reduce == "plain" else monte_carlo(
            denoiser, schedule, energy, 3, lookahead=2)
        state = guide.init_state(2, batch.cond)
        for past in (None, batch.x):
            step, memory, _ = advance(guide, schedule, batch.x, level, level - 1, {**state, "past": past}, batch.cond,
                                      memory=no_memory(batch.x), eta=1.0,
                                      noise=partial(Noise(1), 0, torch.arange(6, device=DEVICE), batch.x))
            assert here(step.x, *memory) and step.x.dtype == torch.float32
