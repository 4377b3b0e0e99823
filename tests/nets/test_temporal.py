"""The temporal U-Net: Diffuser's network with a level for every token, at any length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dforce.core.denoiser import Precond
from dforce.core.loss import forcing_loss, independent
from dforce.core.matrix import full_sequence, pyramid
from dforce.core.sample import generate, sample
from dforce.core.schedule import cosine
from dforce.nets.temporal import TemporalUNet
from tests.gaussian_bed import NonCausal, ar1


def make(**kwargs) -> TemporalUNet:
    torch.manual_seed(0)
    return TemporalUNet((3,), **{"width": 8, "multipliers": (1, 2), **kwargs})


def diffuser(net: TemporalUNet, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
    """Janner et al.'s forward pass, with one embedding [B, F] a sequence, written as in the paper; x [B, T, D]."""
    def residual(block: nn.Module, h: torch.Tensor) -> torch.Tensor:
        level = nn.functional.linear(nn.functional.mish(embedding), block.level[1].weight[..., 0], block.level[1].bias)
        return block.second(block.first(h) + level[..., None]) + block.short(h)

    h, skips = x.transpose(1, 2), []
    for i, pair in enumerate(net.down):
        h = residual(pair.second, residual(pair.first, h))
        skips.append(h)
        h = net.coarsen[i](h) if i + 1 < len(net.down) else h
    h = residual(net.middle.second, residual(net.middle.first, h))
    for pair, refine in zip(net.up, net.refine, strict=True):
        h = torch.cat([h, skips.pop()], 1)
        h = refine(residual(pair.second, residual(pair.first, h)))
    return net.last(h).transpose(1, 2)


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 4, 8)])
def test_with_equal_levels_it_is_diffusers_network(multipliers):
    net = make(multipliers=multipliers)
    x, label = torch.randn(2, 16, 3), torch.tensor([[0.3], [-5.0]]).expand(2, 16)
    out, _ = net(x, label, net.init_state(2))
    embedding = net.embed(net.level(label))[:, 0]
    torch.testing.assert_close(out, diffuser(net, x, embedding), rtol=0, atol=1e-5)


def test_it_has_diffusers_size():
    # The official maze network (6 numbers a step, width 32, multipliers 1, 4, 8) has 3,682,118 parameters; ours reads
    # 17 features of a level where that one reads 32.
    net = TemporalUNet((6,))
    assert sum(p.numel() for p in net.parameters()) == 3_682_118 - (32 - net.level.dim) * 128


@pytest.mark.parametrize("time", [1, 2, 5, 7, 13, 16])
def test_any_length(time):
    net = make(multipliers=(1, 2, 2), static={"start": 4}, token={"action": 2})
    cond = {"static": {"start": torch.randn(2, 4)}, "token": {"action": torch.randn(2, time, 2)}}
    x, label = torch.randn(2, time, 3), torch.randn(2, time)
    out, state = net(x, label, net.init_state(2, cond), cond)
    assert out.shape == x.shape and torch.isfinite(out).all() and state["start"].shape == (2, 8)
    padded = torch.cat([x, torch.zeros(2, -time % 4, 3)], 1)
    label = torch.cat([label, label[:, -1:].expand(2, -time % 4)], 1)
    action = torch.cat([cond["token"]["action"], torch.zeros(2, -time % 4, 2)], 1)
    by_hand, _ = net(padded, label, state, {**cond, "token": {"action": action}})
    torch.testing.assert_close(out, by_hand[:, :time])


def test_every_token_has_a_level_of_its_own_and_sees_both_ways():
    net = make()
    x, label = torch.randn(1, 8, 3, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    out, _ = net(x, label, net.init_state(1))
    for t in (0, 7):
        dx, dlabel = torch.autograd.grad(out[0, t].sum(), (x, label), retain_graph=True)
        assert (dx.abs().sum(-1) > 0).all() and (dlabel != 0).all()


@pytest.mark.slow
def test_it_learns_from_independent_levels():
    schedule, g = cosine(200), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = TemporalUNet((1,), width=16, multipliers=(1, 2))
    denoiser = Precond(net, schedule)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(150):
        loss, _ = forcing_loss(denoiser, schedule, ar1(64, 12, g), levels=independent, generator=g)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    x0, losses = ar1(512, 12, g), []
    for one in (denoiser, NonCausal(schedule, 12)):
        with torch.no_grad():
            losses.append(float(forcing_loss(one, schedule, x0, generator=torch.Generator().manual_seed(1))[0]))
    assert losses[1] < losses[0] < 1.5 * losses[1]


def test_it_samples_any_matrix():
    schedule = cosine(200)
    denoiser = Precond(make(), schedule)
    for matrix in (full_sequence(schedule.grid(4), 12), pyramid(schedule.grid(4), 12, 1)):
        x = torch.randn(8, 12, 3)
        *_, last = sample(denoiser, schedule, matrix, x)
        assert torch.equal(last.x, generate(denoiser, schedule, matrix, x))  # "auto" is the double loop


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="multiple of 8"):
        TemporalUNet((3,), width=12)
    with pytest.raises(ValueError, match="multipliers"):
        TemporalUNet((3,), multipliers=())
    with pytest.raises(ValueError, match="start.*size 4"):
        make(static={"start": 4}).init_state(2)


def test_the_goal_is_told_to_every_position_as_a_static_vector_is():
    """The last numbers of the last token, embedded: the network is one that has them as static conditioning."""
    told, static = make(goal=2), make(static={"end": 2})
    static.load_state_dict({name.replace("goal.", "start."): value for name, value in told.state_dict().items()})
    x, label = torch.randn(2, 12, 3), torch.randn(2, 12)
    wanted, _ = static(x, label, static.init_state(2, {"static": {"end": x[:, -1, 1:]}}))
    torch.testing.assert_close(told(x, label, told.init_state(2))[0], wanted, rtol=0, atol=0)
    with pytest.raises(ValueError, match="goal=4: a token has 3 numbers"):
        make(goal=4)
