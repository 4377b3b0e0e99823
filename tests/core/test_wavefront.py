"""The wavefront with stages of one shape: the same tokens as with stages of their own, and as the double loop."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import cosine, linear
from dforce.core.wavefront import _lives, _stages, wavefront
from dforce.nets.recurrent import RecurrentNet
from tests.gaussian_bed import Causal


def both(denoiser, schedule, rows, x, *, cond=None, eta=0.0, order=2):
    state = denoiser.init_state(len(x), cond)
    with torch.no_grad():
        return [wavefront(denoiser, schedule, rows, x.clone(), state=state, cond=cond, eta=eta, order=order,
                          noise=Noise(3), constant=constant) for constant in (False, True)]


@pytest.mark.parametrize("delay", [0, 1, 3, 8])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_network_with_conditioning(delay, eta):
    torch.manual_seed(0)
    schedule = linear(100)
    net = RecurrentNet((3,), static={"start": 2}, token={"hint": 2}, width=16, depth=2)
    denoiser = Precond(net, schedule, "v")
    cond = {"static": {"start": torch.randn(2, 2)}, "token": {"hint": torch.randn(2, 7, 2)}}
    x = torch.randn(2, 7, 3)
    matrix = pyramid(schedule.grid(8), 7, delay)
    rows = matrix[:, None].expand(-1, 2, -1)
    own, constant = both(denoiser, schedule, rows, x, cond=cond, eta=eta)
    torch.testing.assert_close(constant, own, rtol=0, atol=1e-5)
    loop = generate(denoiser, schedule, matrix, x, cond=cond, eta=eta, noise=Noise(3), path="double_loop")
    torch.testing.assert_close(constant, loop, rtol=0, atol=1e-5)


def test_levels_that_differ_over_the_batch_and_tokens_that_stay():
    schedule = cosine(200)
    denoiser = Causal(schedule)
    plain = pyramid(schedule.grid(5), 6, 2)
    late = torch.cat([plain[:1], plain[:-1]])
    rows = torch.stack([plain, late], 1)
    rows[:, :, 0] = 0  # a known token: shown, never moved
    x = torch.randn(2, 6, 1, generator=torch.Generator().manual_seed(0))
    own, constant = both(denoiser, schedule, rows, x, order=1)
    torch.testing.assert_close(constant, own, rtol=0, atol=1e-6)


def test_all_stages_have_the_shape_of_the_fullest():
    rows = pyramid(linear(100).grid(50), 60, 1)[:, None]
    first, last = _lives(rows)
    (cells, row, sizes), (padded, padded_row, same) = _stages(first, last, False), _stages(first, last, True)
    assert len(sizes) == len(same) == 50 + 2 * 59 + 1 and sum(sizes) == 60 * 51
    assert set(same) == {50 // 2 + 1} == {max(sizes)}
    real = padded < 60
    assert torch.equal(padded[real], cells) and torch.equal(padded_row[real], row)
    stage = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    assert torch.equal(row + cells, stage) and len({*zip(row.tolist(), cells.tolist(), strict=True)}) == len(cells)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_the_noise_that_it_starts_from_is_left_alone(batch, constant):
    schedule = linear(100)
    denoiser = Causal(schedule)
    x = torch.randn(batch, 6, 1, generator=torch.Generator().manual_seed(0))
    before, rows = x.clone(), pyramid(schedule.grid(5), 6, 1)[:, None].expand(-1, batch, -1)
    out = wavefront(denoiser, schedule, rows, x, state=denoiser.init_state(batch), cond=None, eta=0.0, order=2,
                    noise=None, constant=constant)
    assert torch.equal(x, before) and not torch.equal(out, before)
