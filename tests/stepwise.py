"""A network in steps and in one go: the same input for both, and that both say the same."""

from __future__ import annotations

import torch


def inputs_of(batch, time, event, *, token, static=None):
    """x [B, T, *event], label [B, T] and a conditioning of these names and sizes, float64, always the same."""
    g = torch.Generator().manual_seed(1)
    cond = {"token": {name: torch.randn(batch, time, size, generator=g).double() for name, size in token.items()}}
    if static:
        cond["static"] = {name: torch.randn(batch, size, generator=g).double() for name, size in static.items()}
    label = 5 * torch.randn(batch, time, generator=g).double()
    return torch.randn(batch, time, *event, generator=g).double(), label, cond


def part(cond, tokens):
    """The conditioning of some of the tokens."""
    return {**cond, "token": {name: value[:, tokens] for name, value in cond["token"].items()}}


def in_steps(net, x, label, cond):
    """What the net says token by token, and its last state."""
    state, out = net.init_state(len(x), cond), []
    for t in range(x.shape[1]):
        now = slice(t, t + 1)
        y, state = net(x[:, now], label[:, now], state, part(cond, now))
        out.append(y)
    return torch.cat(out, 1), state


def check_step_is_sequence(net, x, label, cond, *, rtol, atol):
    """Token by token, and in two pieces the first of which is only absorbed. -> the whole and its last state."""
    whole, last = net(x, label, net.init_state(len(x), cond), cond)
    found, state = in_steps(net, x, label, cond)
    torch.testing.assert_close(found, whole, rtol=rtol, atol=atol)
    assert state.keys() == last.keys()
    for name in last:
        torch.testing.assert_close(state[name], last[name], rtol=rtol, atol=atol)
    state = net.absorb(x[:, :2], label[:, :2], net.init_state(len(x), cond), part(cond, slice(2)))
    rest, _ = net(x[:, 2:], label[:, 2:], state, part(cond, slice(2, None)))
    torch.testing.assert_close(rest, whole[:, 2:], rtol=rtol, atol=atol)
    return whole, last
