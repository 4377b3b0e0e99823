"""The lean walk back through a GRU is PyTorch's own: values, gradients, and gradients of gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dforce.nets import gru
from dforce.nets.recurrent import RecurrentNet


def bed(layers, batch, time, width=12, inner=12, dtype=torch.float64):
    torch.manual_seed(0)
    core = nn.GRU(inner, width, layers, batch_first=True).to(dtype).requires_grad_(False)
    code = torch.randn(batch, time, inner, dtype=dtype, requires_grad=True)
    return core, code, torch.randn(layers, batch, width, dtype=dtype, requires_grad=True)


def both(layers, batch, time, **options):
    """(latents, last, gradients in code and z) by PyTorch and by us, of a loss that reads both."""
    core, code, z = bed(layers, batch, time, **options)
    weigh = torch.randn(batch, time, core.hidden_size, dtype=code.dtype)
    found = []
    for run in (core, lambda *given: gru.unroll(core, *given)):
        latents, last = run(code, z)
        loss = (weigh * latents).sin().sum() + last.square().sum()
        found.append((latents, last, *torch.autograd.grad(loss, (code, z))))
    return found


@pytest.mark.parametrize("layers, batch, time", [(1, 1, 1), (1, 3, 9), (2, 2, 5), (3, 1, 7)])
def test_equal_to_pytorch(layers, batch, time):
    theirs, ours = both(layers, batch, time)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_way_of_a_gpu_is_the_same_function():
    core, code, z = bed(2, 3, 5)
    for ours, theirs in zip(gru.cudnn(core.eval(), code, z), core(code, z), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_input_of_another_width_and_only_one_gradient():
    core, code, z = bed(1, 2, 4, inner=5)
    z = z.detach()
    wanted, = torch.autograd.grad(core(code, z)[0].sum(), code)
    torch.testing.assert_close(torch.autograd.grad(gru.unroll(core, code, z)[0].sum(), code)[0], wanted)


def test_float32_to_rounding():
    theirs, ours = both(1, 4, 40, width=64, inner=64, dtype=torch.float32)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_gradients():
    core, code, z = bed(2, 1, 2, width=3, inner=2)
    assert torch.autograd.gradgradcheck(lambda c, h: gru.unroll(core, c, h)[0], (code, z))
    assert torch.autograd.gradcheck(lambda c, h: gru.unroll(core, c, h)[0], (code, z))


def test_who_takes_it():
    core, code, _ = bed(1, 2, 4)
    assert gru.pays(core, code)
    assert not gru.pays(core, code.detach()) and not gru.pays(core, torch.cat([code] * gru.LARGEST))
    with torch.no_grad():
        assert not gru.pays(core, code)
    with torch.autocast("cpu", torch.bfloat16):
        assert not gru.pays(core, code)
    assert not gru.pays(core.requires_grad_(), code)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_frozen_network_has_the_gradient_of_a_learning_one(depth, monkeypatch):
    torch.manual_seed(0)
    net = RecurrentNet((3,), width=8, depth=depth)
    x, label = torch.randn(2, 6, 3, requires_grad=True), torch.randn(2, 6)
    taken, unroll = [], gru.unroll
    monkeypatch.setattr(gru, "unroll", lambda *given: taken.append(1) or unroll(*given))

    def gradient():
        out, state = net(x, label, net.init_state(2))
        return torch.autograd.grad(out.square().sum() + state["z"].sum(), x)[0]

    learning, frozen = gradient(), (net.requires_grad_(False), gradient())[1]
    assert taken == [1]
    torch.testing.assert_close(frozen, learning, rtol=1e-5, atol=1e-6)
