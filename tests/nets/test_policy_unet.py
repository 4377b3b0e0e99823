"""Diffusion Policy's network: its published formulas, what it sees, and that a memory is the same as a sequence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dforce.nets.policy_unet import PolicyUNet

TOKENS = {"parts": {"eye": 3, "joint": 2}, "action": 2, "chunk": 4}
EYE = torch.eye(3)
WAYS = {"film": {"observations": 2}, "attention": {"observations": 3, "heads": 2}}


def network(way="film", **more):
    torch.manual_seed(0)
    return PolicyUNet((8,), tokens=TOKENS, token={"kind": 3}, width=8, multipliers=(1, 2), **WAYS[way], **more)


def sequence(cycles=4, rows=2, seed=0):
    """Tokens x, their labels, and the conditioning of sequences of eye, joint, actions, eye, ..."""
    generator = torch.Generator().manual_seed(seed)
    time = 3 * cycles
    kind = EYE.repeat(cycles, 1).expand(rows, -1, -1)
    return (torch.randn(rows, time, 8, generator=generator), torch.randn(rows, time, generator=generator),
            {"token": {"kind": kind}, "static": {"first": torch.randn(rows, 5, generator=generator)}})


def test_a_block_is_the_published_one():
    """conv, norm, Mish; times scale plus shift, each linear in Mish of the features; conv, norm, Mish; a shortcut."""
    block = network().down[1].first
    h, features = torch.randn(3, 8, 4), torch.randn(3, block.level[1].in_channels, 1)

    def conv(layer, value):
        value = F.conv1d(value, layer[0].weight, layer[0].bias, padding=2)
        return F.mish(F.group_norm(value, 8, layer[1].weight, layer[1].bias))

    scale, shift = F.linear(F.mish(features[..., 0]), block.level[1].weight[..., 0], block.level[1].bias).chunk(2, 1)
    expected = conv(block.second, conv(block.first, h) * scale[..., None] + shift[..., None]) + F.conv1d(
        h, block.short.weight, block.short.bias)
    torch.testing.assert_close(block(h, features), expected)


def test_it_has_as_many_weights_as_the_published_one():
    """Of layers, counted by hand; the embedding of the level and what conditions are of other sizes."""
    observed, action, (a, b, c) = 20, 4, (16, 32, 64)
    net = PolicyUNet((64,), tokens={"parts": {"state": 9}, "action": action, "chunk": 16}, token={"kind": 2}, width=16,
                     multipliers=(1, 2, 4), observations=2)
    features = 16 + observed

    def block(i, o):
        return (5 * i + 1) * o + (5 * o + 1) * o + 4 * o + (features + 1) * 2 * o + ((i + 1) * o if i != o else 0)

    blocks = [(action, a), (a, a), (a, b), (b, b), (b, c), (c, c), (c, c), (c, c), (2 * c, b), (b, b), (2 * b, a),
              (a, a)]
    down, up = sum((3 * o + 1) * o for o in (a, b)), sum((4 * o + 1) * o for o in (b, a))
    embedding = (net.level.dim + 1) * 64 + 65 * 16
    last = (5 * a + 1) * a + 2 * a + (a + 1) * action
    total = sum(block(*each) for each in blocks) + down + up + embedding + last
    assert sum(p.numel() for p in net.parameters()) == total


@pytest.mark.parametrize("way", WAYS)
def test_a_memory_gives_what_a_sequence_gives_however_it_is_cut(way):
    net = network(way, static={"first": 5})
    x, label, cond = sequence(5)
    whole, end = net(x, label, net.init_state(2, cond), cond)
    for cut in (1, 2, 4, 9, 13):
        parts = [{"token": {"kind": cond["token"]["kind"][:, part]}} for part in (slice(cut), slice(cut, None))]
        state = net.absorb(x[:, :cut], label[:, :cut], net.init_state(2, cond), parts[0])
        out, last = net(x[:, cut:], label[:, cut:], state, parts[1])
        torch.testing.assert_close(out, whole[:, cut:])
        for name, value in end.items():
            torch.testing.assert_close(last[name], value)
    torch.testing.assert_close(whole[:, ::3], x[:, ::3])
    assert (whole[:, 2::3] != x[:, 2::3]).all()


@pytest.mark.parametrize("way", WAYS)
def test_actions_see_the_last_observations_their_own_token_and_nothing_else(way):
    """Neither the future, nor other actions, nor an observation that is out of reach."""
    net = network(way)
    x, label, cond = sequence(6, rows=1)
    x.requires_grad_()
    label.requires_grad_()
    out, _ = net(x, label, net.init_state(1), cond)
    for cycle in range(6):
        at = 3 * cycle + 2
        by_x, by_label = torch.autograd.grad(out[0, at].square().sum(), (x, label), retain_graph=True)
        reach = range(max(0, cycle + 1 - WAYS[way]["observations"]), cycle + 1)
        expected = {at} | {3 * each + part for each in reach for part in (0, 1)}
        assert set(by_x[0].abs().sum(1).nonzero()[:, 0].tolist()) == expected
        assert set(by_label[0].nonzero()[:, 0].tolist()) == expected


@pytest.mark.parametrize("way", WAYS)
def test_rows_know_nothing_of_one_another(way):
    net = network(way, static={"first": 5})
    x, label, cond = sequence(3, rows=4)
    order = torch.tensor([2, 0, 3, 1])
    out, state = net(x, label, net.init_state(4, cond), cond)
    turned = {"token": cond["token"], "static": {"first": cond["static"]["first"][order]}}
    other, after = net(x[order], label[order], net.init_state(4, turned), turned)
    torch.testing.assert_close(other, out[order])
    torch.testing.assert_close(after["seen"], state["seen"][order])
    assert (network()(x, label, network().init_state(4), cond)[0][:, 2] - out[:, 2]).abs().max() > 1e-3  # it is told


def test_before_the_first_observation_stand_copies_of_it():
    net = network()
    x, label, cond = sequence(2)
    x[:, 3:5], label[:, 3:5] = x[:, :2], label[:, :2]
    x[:, 5], label[:, 5] = x[:, 2], label[:, 2]
    out, _ = net(x, label, net.init_state(2), cond)
    torch.testing.assert_close(out[:, 2], out[:, 5])


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="multiple of 2 actions"):
        PolicyUNet((9,), tokens={**TOKENS, "chunk": 3}, token={"kind": 3}, width=8, multipliers=(1, 2))
    with pytest.raises(ValueError, match="takes tokens"):
        network()(torch.zeros(1, 3, 7), torch.zeros(1, 3), network().init_state(1), sequence(1)[2])
