"""The thin recurrent network: step = sequence, the latent it reads is the one before, conditioning is checked."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dforce.nets.embed import LevelFeatures
from dforce.nets.recurrent import RecurrentNet
from tests.stepwise import check_step_is_sequence, in_steps, inputs_of


def build(event=(3,), **options):
    torch.manual_seed(0)
    return RecurrentNet(event, width=16, static={"start": 4, "goal": 2}, token={"a": 2}, **options).double()


inputs = partial(inputs_of, batch=3, time=5, event=(3,), token={"a": 2}, static={"goal": 2, "start": 4})


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("event", [(3,), (2, 2)])
def test_step_is_sequence(depth, event):
    net, (x, label, cond) = build(event, depth=depth), inputs(event=event)
    whole, last = check_step_is_sequence(net, x, label, cond, rtol=1e-10, atol=1e-12)
    assert whole.shape == x.shape and last["z"].shape == (3, depth, 16)


def test_step_is_sequence_in_float32():
    net = build().float()
    x, label, cond = inputs()
    x, label = x.float(), label.float()
    cond = {kind: {name: value.float() for name, value in values.items()} for kind, values in cond.items()}
    whole, _ = net(x, label, net.init_state(3, cond), cond)
    torch.testing.assert_close(in_steps(net, x, label, cond)[0], whole, rtol=1e-5, atol=1e-6)


def test_the_head_reads_the_latent_before_the_token():
    """out_t = head(z_{t-1}, e_t), z_t = GRU(z_{t-1}, e_t), spelled out with a GRU cell."""
    net, (x, label, cond) = build(depth=1), inputs()
    cell = torch.nn.GRUCell(16, 16).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in net.core.state_dict().items()})
    static = torch.cat([cond["static"]["start"], cond["static"]["goal"]], -1)
    z = net.null[0] + net.start(static)
    wanted = []
    for t in range(5):
        code = net.encoder(torch.cat([x[:, t], net.level(label[:, t]), cond["token"]["a"][:, t]], -1))
        wanted.append(net.head(torch.cat([z, code], -1)))
        z = cell(code, z)
    got, state = net(x, label, net.init_state(3, cond), cond)
    torch.testing.assert_close(got, torch.stack(wanted, 1))
    torch.testing.assert_close(state["z"][:, 0], z)


def test_states_are_values():
    net, (x, label, cond) = build(), inputs()
    state = net.init_state(3, cond)
    before = state["z"].clone()
    net(x, label, state, cond)
    assert torch.equal(state["z"], before)
    alone, _ = net(x[1:2], label[1:2], {"z": before[1:2]}, {"token": {"a": cond["token"]["a"][1:2]}})
    torch.testing.assert_close(alone, net(x, label, state, cond)[0][1:2])


def test_every_input_matters():
    net, (x, label, cond) = build(depth=2), inputs()
    inputs_ = [x, label, cond["token"]["a"], cond["static"]["start"], cond["static"]["goal"]]
    for value in inputs_:
        value.requires_grad_()
    out, _ = net(x, label, net.init_state(3, cond), cond)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(out.square().sum(), [*inputs_, *net.parameters()]))


def test_the_null_state_is_learnt():
    net = RecurrentNet((2,), width=8, depth=2)
    assert net.init_state(4)["z"].shape == (4, 2, 8) and net.init_state(4)["z"].requires_grad


@pytest.mark.parametrize("cond, message", [
    (None, r"cond\['static'\]\['start'\] of size 4, got none"),
    ({"static": {"goal": torch.zeros(3, 2)}}, r"\['start'\] of size 4, got \['goal'\]"),
    ({"static": {"start": torch.zeros(3, 5), "goal": torch.zeros(3, 2)}}, r"must end in 4, got \[3, 5\]"),
    ({"static": {"start": torch.zeros(2, 4), "goal": torch.zeros(2, 2)}}, "2 rows for a batch of 3"),
])
def test_missing_or_wrong_static_conditioning(cond, message):
    with pytest.raises(ValueError, match=message):
        build().float().init_state(3, cond)


@pytest.mark.parametrize("cond, message", [
    ({}, r"cond\['token'\]\['a'\] of size 2, got none"),
    ({"token": {"b": torch.zeros(3, 5, 2)}}, r"got \['b'\]"),
    ({"token": {"a": torch.zeros(3, 5, 3)}}, r"must end in 2, got \[3, 5, 3\]"),
])
def test_missing_or_wrong_token_conditioning(cond, message):
    net, (x, label, good) = build(), inputs()
    with pytest.raises(ValueError, match=message):
        net(x, label, net.init_state(3, good), cond)


def test_wrong_events():
    net, (x, label, cond) = build(), inputs()
    with pytest.raises(ValueError, match=r"takes tokens \[B, T, 3\], got \[3, 5, 2\]"):
        net(x[..., :2], label, net.init_state(3, cond), cond)


def test_level_features_tell_levels_apart():
    features = LevelFeatures()
    label = torch.linspace(-20, 20, 401)[None]
    out = features(label)
    assert out.shape == (1, 401, features.dim) and torch.equal(out[..., 0], label / 10) and out.abs().max() <= 2
    gaps = torch.cdist(out[0], out[0]) + 10 * torch.eye(401)
    assert gaps.min() > 0.05          # a tenth of a nat apart is seen
    slow = out[0, :, 1]               # the slowest sine is monotone over the whole range
    assert (slow.diff() > 0).all()
