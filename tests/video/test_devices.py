"""The video networks, their losses and rollouts stay on the device of the model: a GPU, or tensors without numbers
that play one, where a number of another device raises."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import pytest
import torch
from torch import Tensor

from dforce.core.denoiser import Precond
from dforce.core.loss import independent
from dforce.core.rollout import rollout
from dforce.core.schedule import Schedule, cosine
from dforce.core.tree import leaves
from dforce.data.batch import Batch
from dforce.nets.conv import ConvGRUNet
from dforce.nets.frames import FrameTransformerNet
from dforce.train.objectives import ForcingObjective
from dforce.train.precision import device_of
from dforce.video.baselines import TwoCall, next_frame_regression

REAL = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if REAL else "meta")
NETS = {"reach": partial(ConvGRUNet, reach=3), "no reach": partial(ConvGRUNet, reach=0),
        "checkpointing": partial(ConvGRUNet, reach=3, checkpointing=True),
        "transformer": partial(FrameTransformerNet, heads=2, layers=2, context=3, multipliers=(1, 2))}
EVERY = pytest.mark.parametrize("name", NETS)
FORMATS = pytest.mark.parametrize("bf16", [False, *[True] * REAL])  # autocast knows no meta


def cast(bf16: bool) -> torch.autocast:
    return torch.autocast("cuda" if REAL else "cpu", torch.bfloat16, enabled=bf16)


def bed(name: str) -> tuple[Precond, Batch]:
    """A denoiser and four clips of five frames on the device; the schedule is checked where there are numbers."""
    denoiser = Precond(NETS[name]((1, 8, 8), token={"action": 2}, width=8), cosine(20), "x0").to(DEVICE)
    with DEVICE:
        return denoiser, Batch(torch.randn(4, 5, 1, 8, 8), torch.ones(4, 5, dtype=torch.bool),
                               {"token": {"action": torch.randn(4, 5, 2)}}, torch.ones(4, dtype=torch.bool))


def there(*tensors: Tensor) -> bool:
    return all(tensor.device == DEVICE for tensor in tensors)


def drawn(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    with DEVICE:  # there is no generator of a GPU that is not there
        return independent(schedule, shape, generator, power=2.0)


@EVERY
@FORMATS
@pytest.mark.quick(1)
def test_losses_of_video_and_their_gradients(name, bf16):
    denoiser, batch = bed(name)
    generator = torch.Generator(DEVICE) if REAL else None
    forcing = ForcingObjective(denoiser, denoiser.schedule, levels=drawn, carry=True)
    carried: list[Tensor] | None = None
    for _ in range(2):
        with cast(bf16):
            loss, _, carried = forcing(batch, generator, carried)
        loss.backward()
        assert there(loss, *carried) and loss.dtype == torch.float32
        assert all(leaf.dtype == torch.float32 for leaf in carried if leaf.is_floating_point())
    for objective in (next_frame_regression(denoiser, denoiser.schedule), TwoCall(denoiser, denoiser.schedule)):
        with cast(bf16):
            loss, _ = objective(batch, generator)
        loss.backward()
        assert there(loss)
    assert there(*(p.grad for p in denoiser.parameters() if p.grad is not None))


@EVERY
@FORMATS
@pytest.mark.parametrize("size, refresh", [(1, None), (2, (2, 4))])
@pytest.mark.quick(3)
def test_a_rollout(name, bf16, size, refresh, monkeypatch):
    monkeypatch.setattr(Schedule, "nearest", lambda self, std: 2)  # sought among the numbers of the tables
    matrix = torch.tensor([[20, 20], [9, 20], [9, 9], [0, 9], [0, 0]])[:, :size]
    denoiser, batch = bed(name)
    cond = {"token": {"action": batch.cond["token"]["action"][:, :size]}}
    if not REAL:  # which tokens move is asked of numbers, which a path on the CPU has
        monkeypatch.setattr(import_module("dforce.core.rollout"), "generate",
                            lambda denoiser, schedule, matrix, x, **how: denoiser(
                                x, matrix[0].to(x.device).expand(x.shape[:2]), how["state"], how["cond"])[0])
        monkeypatch.setattr(import_module("dforce.core.rollout"), "_checked_cond", lambda cond, batch, time: cond)
    with cast(bf16), torch.no_grad():
        chunks = rollout(denoiser, denoiser.schedule, matrix, denoiser.init_state(4, cond), (1, 8, 8), batch=4,
                         cond=cond, eta=1.0, stabilise_std=0.1, mode="noise", refresh=refresh)
        for _ in range(2):
            x, state = next(chunks)
            assert there(x, *leaves(state)) and x.dtype == torch.float32


@pytest.mark.parametrize("name, told", [("gpu", "device must be cpu, cuda or"), ("mps", "device must be cpu, cuda or"),
                                        ("cuda:99", "there is no cuda:99 here")])
def test_devices_that_are_not_there(name, told):
    with pytest.raises(ValueError, match=told):
        device_of(name)


def test_the_device_that_is_there():
    assert device_of("cpu") == torch.device("cpu")
    assert device_of(None).type == ("cuda" if REAL else "cpu")
