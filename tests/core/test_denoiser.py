"""Precond: every parameterisation says the same x0; what it shows its network; what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dforce.core.denoiser import Denoiser, Precond, fork_cond, slice_cond
from dforce.core.loss import corrupt
from dforce.core.schedule import Schedule, flow, linear
from dforce.nets.recurrent import RecurrentNet

VE = Schedule(torch.ones(101), torch.cat([torch.zeros(1), torch.logspace(-2, 2, 100)]))


class Oracle(nn.Module):
    """Answers with what a perfect network would say, and keeps what it was shown."""

    causal = recurrent = True

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def init_state(self, batch, cond=None):
        return torch.zeros(batch, 1)

    def absorb(self, x, label, state, cond=None):
        self.seen = x, label
        return state + 1

    def forward(self, x, label, state, cond=None):
        self.seen = x, label
        return self.answer, state + 1


@pytest.mark.parametrize("schedule", [linear(100), flow(100), VE], ids=["linear", "flow", "ve"])
@pytest.mark.parametrize("predict", ["x0", "eps", "v", "flow"])
def test_parameterisations_invert_each_other(schedule, predict):
    if predict == "eps" and schedule.alpha[-1] == 0:
        pytest.skip("refused, below")
    g = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 3, 4, 2, generator=g).double()
    level = torch.randint(0, 101, (3, 4), generator=g)
    level[0, 0], level[0, 1] = 0, 100
    alpha, sigma = schedule(level, x0)
    answer = {"x0": x0, "eps": noise, "v": alpha * noise - sigma * x0, "flow": noise - x0}[predict]
    if predict == "v" and not torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha)):
        pytest.skip("v belongs to variance-preserving schedules")
    denoiser = Precond(Oracle(answer), schedule, predict)
    got, state = denoiser(corrupt(schedule, x0, level, noise), level, denoiser.init_state(3))
    torch.testing.assert_close(got, x0, rtol=1e-8, atol=1e-8)
    assert (state == 1).all()


def test_a_clean_token_comes_back_whatever_the_velocity():
    """At level 0 eps and v leave x itself; the network cannot spoil a finished token."""
    x = torch.randn(2, 3, 2)
    for predict in ("eps", "v", "flow"):
        denoiser = Precond(Oracle(torch.randn(2, 3, 2)), linear(10), predict)
        got, _ = denoiser(x, torch.zeros(2, 3, dtype=torch.long), x[:, 0])
        assert torch.equal(got, x)


def test_the_network_is_told_the_label_and_shown_unit_variance():
    s, level = VE, torch.tensor([[0, 1, 50, 100]])
    x = torch.randn(1, 4, 2)
    denoiser = Precond(Oracle(x), s, data_std=0.5)
    denoiser(x, level, denoiser.init_state(1))
    shown, label = denoiser.net.seen
    torch.testing.assert_close(label, s.label[level].float())
    torch.testing.assert_close(shown, x / (0.25 + s.sigma[level][..., None] ** 2).sqrt().float())
    denoiser.absorb(x, level, denoiser.init_state(1))
    assert torch.equal(denoiser.net.seen[0], shown)
    plain = Precond(Oracle(x), s)
    plain(x, level, plain.init_state(1))
    assert plain.net.seen[0] is x


def test_the_algebra_stays_float32_under_autocast():
    denoiser = Precond(RecurrentNet((2,), width=8), linear(10), "v")
    with torch.autocast("cpu", torch.bfloat16):
        got, _ = denoiser(torch.randn(2, 3, 2), torch.full((2, 3), 4), denoiser.init_state(2))
    assert got.dtype == torch.float32


def test_is_a_denoiser_with_the_nets_abilities():
    denoiser = Precond(RecurrentNet((2,), width=8), linear(10))
    assert isinstance(denoiser, Denoiser) and denoiser.causal and denoiser.recurrent and not denoiser.global_x0

    class Bidirectional(nn.Module):
        def forward(self, x, label, state, cond=None):
            return x, state

    assert not Precond(Bidirectional(), linear(10)).causal and not Precond(Bidirectional(), linear(10)).recurrent
    with pytest.raises(ValueError, match="Bidirectional is not causal.*level 0"):
        Precond(Bidirectional(), linear(10)).absorb(torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.long), None)


def test_absorbing_is_walking_without_a_head_or_a_graph():
    denoiser = Precond(RecurrentNet((2,), width=8), linear(10), data_std=0.3)
    x, level = torch.randn(2, 5, 2), torch.randint(0, 11, (2, 5))
    absorbed = denoiser.absorb(x, level, denoiser.init_state(2))
    _, walked = denoiser(x, level, denoiser.init_state(2))
    assert torch.equal(absorbed["z"], walked["z"]) and not absorbed["z"].requires_grad


@pytest.mark.parametrize("predict, schedule, message", [
    ("eps", flow(10), "says nothing about x0 .* use 'v', 'flow' or 'x0'"),
    ("score", linear(10), "'x0', 'eps', 'v' or 'flow', got 'score'"),
])
def test_refused_at_construction(predict, schedule, message):
    with pytest.raises(ValueError, match=message):
        Precond(nn.Identity(), schedule, predict)


@pytest.mark.parametrize("level", [torch.zeros(2, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long),
                                   torch.zeros(2, 3, 2, dtype=torch.long)])
def test_level_shape_is_checked(level):
    denoiser = Precond(RecurrentNet((2,), width=8), linear(10))
    with pytest.raises(ValueError, match=r"level must be \[B, T\] = \[2, 3\] for x \[2, 3, 2\], got"):
        denoiser(torch.zeros(2, 3, 2), level, denoiser.init_state(2))


def test_cut_and_fork_of_conditioning():
    cond = {"token": {"a": torch.arange(6.0).view(1, 6, 1)}, "static": {"s": torch.ones(1, 2)}}
    part = slice_cond(cond, slice(2, 4))
    assert part["token"]["a"].flatten().tolist() == [2, 3] and part["static"]["s"].shape == (1, 2)
    assert slice_cond(None, slice(2)) is None and slice_cond({"static": {}}, slice(2)) == {"static": {}}
    assert fork_cond(cond, 3)["token"]["a"].shape == (3, 6, 1) and fork_cond(None, 3) is None
