"""The ConvGRU network over frames: step = sequence, causality, what the head reads, memory, errors."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from dforce.benchmarks.speed.cost import peak_memory
from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.sample import generate
from dforce.core.schedule import cosine
from dforce.nets.conv import ConvGRUNet
from dforce.nets.conv_blocks import Last
from dforce.train.checkpoint import build_denoiser
from tests.stepwise import check_step_is_sequence, in_steps, inputs_of, part

OPTIONS = {"width": 4, "multipliers": (1, 2), "patch": 2, "latent": 3}


def build(event=(3, 8, 8), **options):
    torch.manual_seed(0)
    net = ConvGRUNet(event, token={"action": 2}, **{**OPTIONS, **options}).double()
    with torch.no_grad():
        net.null.normal_()
    return net


inputs = partial(inputs_of, batch=2, time=4, event=(3, 8, 8), token={"action": 2})


@pytest.mark.parametrize("event, options", [
    ((3, 8, 8), {}), ((1, 8, 16), {"depth": 2}), ((6, 8, 8), {"patch": 1, "multipliers": (1,)}),
    ((3, 16, 16), {"patch": 4, "multipliers": (2, 3)}), ((3, 8, 8), {"reach": 0})])
def test_step_is_sequence(event, options):
    net, (x, label, cond) = build(event, **options), inputs(event=event)
    whole, last = check_step_is_sequence(net, x, label, cond, rtol=1e-10, atol=1e-12)
    assert whole.shape == x.shape and last["z"].shape == (2, 3, *net.coarse)


def test_step_is_sequence_in_float32():
    net, (x, label, cond) = build().float(), inputs()
    x, label, cond = x.float(), label.float(), {"token": {"action": cond["token"]["action"].float()}}
    whole, _ = net(x, label, net.init_state(2), cond)
    torch.testing.assert_close(in_steps(net, x, label, cond)[0], whole, rtol=1e-4, atol=1e-5)


def test_frames_hear_of_earlier_ones_only_and_of_all_of_them():
    net, (x, label, cond) = build(), inputs(batch=1)
    for given in (x, label, cond["token"]["action"]):
        given.requires_grad_()
    out, state = net(x, label, net.init_state(1), cond)
    for t in range(4):
        wanted = out[:, t].square().sum()
        for gradient in torch.autograd.grad(wanted, [x, label, cond["token"]["action"]], retain_graph=True):
            heard = gradient[0].flatten(1).abs().sum(1) if gradient.ndim > 2 else gradient[0].abs()
            assert (heard[:t + 1] > 0).all() and (heard[t + 1:] == 0).all()
    assert (torch.autograd.grad(state["z"].square().sum(), x)[0].flatten(2).abs().sum(2) > 0).all()


def test_the_decoder_reads_the_latent_before_the_frame():
    """z_t by a GRU cell written out, gate by gate; out_t from z_{t-1} and the frame's own features."""
    net, (x, label, cond) = build(), inputs()
    def conv(layer, value, gate):
        rows = slice(3 * gate, 3 * gate + 3)
        return F.conv2d(value, layer.weight[rows], layer.bias[rows], padding=1)
    z = net.null.expand(2, -1, -1, -1)
    got, state = net(x, label, net.init_state(2), cond)
    before = net.init_state(2)
    for t in range(4):
        seen, told, features, before = net._encode(x[:, t:t + 1], label[:, t:t + 1], before,
                                                   part(cond, slice(t, t + 1)))
        wanted = net.decoder(seen, features, z, told, lambda block, *given: block(*given))
        torch.testing.assert_close(got[:, t], wanted)
        a = [conv(net.inward, features[-1], gate) for gate in range(3)]
        g = [conv(net.across, z, gate) for gate in range(3)]
        reset, keep = (a[0] + g[0]).sigmoid(), (a[1] + g[1]).sigmoid()
        z = (1 - keep) * (a[2] + reset * g[2]).tanh() + keep * z
    torch.testing.assert_close(state["z"], z)
    assert torch.equal(state["frame"], x[:, -1]) and torch.equal(state["label"], label[:, -1:])


def test_pixels_come_from_the_frame_before_as_far_as_they_reach():
    """All weight on one neighbour moves the frame by it; evenly spread, it is the mean of all around."""
    last = Last(1, 2, 2, 3, reach=5).double()
    before = torch.rand(1, 2, 6, 7).double()
    padded = F.pad(before, (2, 2, 2, 2), mode="replicate")
    for k, (down, right) in ((0, (0, 0)), (9, (1, 4)), (12, (2, 2))):
        weight = F.one_hot(torch.tensor(k), 25).double().view(1, 25, 1, 1).expand(-1, -1, 6, 7)
        assert torch.equal(last._moved(before, weight), padded[..., down:down + 6, right:right + 7])
    even = torch.full((1, 25, 6, 7), 1 / 25).double()
    torch.testing.assert_close(last._moved(before, even), F.avg_pool2d(padded, 5, 1))


def test_at_first_a_frame_is_made_of_what_was_seen_as_it_was():
    """Nothing new, all of the share with the frame before, all weight on its own place: the frame before again."""
    last = Last(1, 2, 2, 3, reach=3).double()
    with torch.no_grad():
        for layer in (last.conv_out, last.share, last.from_features, last.from_told):
            for parameter in layer.parameters():
                parameter.zero_()
        last.share.bias[2:] = 1
        last.from_told.bias[4] = 60
    seen = torch.rand(2, 4, 5, 5).double()
    torch.testing.assert_close(last(torch.rand(2, 1, 5, 5).double(), seen, torch.rand(2, 3).double()), seen[:, 2:])


def test_every_input_and_every_weight_matters():
    net, (x, label, cond) = build(depth=2), inputs()
    given = [x, label, cond["token"]["action"]]
    for value in given:
        value.requires_grad_()
    out, _ = net(x, label, net.init_state(2), cond)
    gradients = torch.autograd.grad(out.square().sum(), [*given, *net.parameters()])
    assert all(g.abs().sum() > 0 for g in gradients)


def test_states_and_batches_are_values():
    net, (x, label, cond) = build(), inputs()
    state = net.init_state(2)
    before = {name: value.clone() for name, value in state.items()}
    both, after = net(x, label, state, cond)
    assert all(torch.equal(state[name], before[name]) for name in before)
    alone, last = net(x[1:], label[1:], {name: value[1:] for name, value in before.items()},
                      {"token": {"action": cond["token"]["action"][1:]}})
    torch.testing.assert_close(alone, both[1:])
    for name in last:
        torch.testing.assert_close(last[name], after[name][1:])


def test_checkpointing_gives_equal_gradients_for_less_memory():
    x, label, cond = inputs(time=6)
    found = []
    for checkpointing in (False, True):
        net = build(depth=2, width=16, checkpointing=checkpointing)

        def step(net=net):
            net.zero_grad()
            net(x, label, net.init_state(2), cond)[0].square().mean().backward()
        memory = peak_memory(step)
        found.append((memory, [p.grad for p in net.parameters()]))
    for plain, again in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(plain, again)
    assert found[1][0] < 0.7 * found[0][0]


def test_wavefront_is_double_loop():
    schedule = cosine(50)
    net = build(event=(1, 4, 4), multipliers=(1,))
    denoiser = Precond(net, schedule, "v")
    x, _, cond = inputs(time=3, event=(1, 4, 4))
    matrix = pyramid(schedule.grid(4), 3, 2)
    wave, loop = (generate(denoiser, schedule, matrix, x, cond=cond, path=p) for p in ("wavefront", "double_loop"))
    torch.testing.assert_close(wave, loop)


def test_no_checker_pattern_from_a_flat_frame():
    """Beyond the reach of the border a flat frame gives a flat answer: no pixel knows its place in its patch."""
    net = build(event=(3, 64, 64), multipliers=(1,), patch=4)
    x, label = torch.ones(1, 1, 3, 64, 64).double(), torch.zeros(1, 1).double()
    with torch.no_grad():
        net.null.zero_()
        out, _ = net(x, label, net.init_state(1), {"token": {"action": torch.zeros(1, 1, 2).double()}})
    inside = out[0, 0, :, 28:36, 28:36]
    torch.testing.assert_close(inside, inside[:, :1, :1].expand_as(inside))
    assert out.std((3, 4)).min() > 0  # unlike at the border


def test_built_from_a_configuration():
    config = {"net": {"_target_": "dforce.nets.conv.ConvGRUNet", **OPTIONS, "multipliers": [1, 2]},
              "schedule": {"_target_": "dforce.core.schedule.cosine", "levels": 10}, "predict": "v"}
    denoiser = build_denoiser(config, {"event_shape": [3, 8, 8], "token": {"action": 2}})
    x, _, cond = inputs()
    cond = {"token": {"action": cond["token"]["action"].float()}}
    out, _ = denoiser(x.float(), torch.full((2, 4), 5), denoiser.init_state(2), cond)
    assert out.shape == x.shape and denoiser.causal and denoiser.recurrent


@pytest.mark.parametrize("event, options, message", [
    ((3, 8), {}, r"tokens \[B, T, C, H, W\], the data has \[B, T, 3, 8\]"),
    ((3, 10, 8), {}, r"frames of 10x8 do not divide .* multiples of 4"),
    ((3, 8, 8), {"multipliers": ()}, "one or more multipliers"),
    ((3, 8, 8), {"width": 0}, "must be at least 1, got width=0"),
    ((3, 8, 8), {"latent": 0}, "latent=0"),
    ((3, 8, 8), {"reach": 4}, "odd, or 0; got 4"),
])
def test_sizes_that_do_not_fit(event, options, message):
    with pytest.raises(ValueError, match=message):
        ConvGRUNet(event, **{**OPTIONS, **options})


@pytest.mark.parametrize("cond, message", [
    (None, r"cond\['token'\]\['action'\] of size 2, got none"),
    ({"token": {"action": torch.zeros(2, 4, 3)}}, r"must end in 2, got \[2, 4, 3\]"),
])
def test_missing_or_wrong_actions(cond, message):
    net, (x, label, _) = build(), inputs()
    with pytest.raises(ValueError, match=message):
        net(x, label, net.init_state(2), cond)


def test_wrong_frames():
    net, (x, label, cond) = build(), inputs()
    with pytest.raises(ValueError, match=r"takes tokens \[B, T, 3, 8, 8\], got \[2, 4, 3, 8, 4\]"):
        net(x[..., :4], label, net.init_state(2), cond)
