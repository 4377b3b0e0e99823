"""The causal transformer over frames: step = sequence, its window, causality, gradients, errors."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import pyramid
from dforce.core.sample import generate
from dforce.core.schedule import cosine
from dforce.guidance.history import history_guided, vanilla
from dforce.nets.frames import FrameTransformerNet
from dforce.train.checkpoint import build_denoiser
from tests.stepwise import check_step_is_sequence, inputs_of, part

OPTIONS = {"width": 4, "multipliers": (1, 2), "patch": 2, "layers": 2, "heads": 2, "context": 3}
EVENT = (2, 8, 8)


def build(**options):
    torch.manual_seed(0)
    return FrameTransformerNet(EVENT, token={"action": 2}, **{**OPTIONS, **options}).double()


inputs = partial(inputs_of, batch=2, time=6, event=EVENT, token={"action": 2})


@pytest.mark.parametrize("context", [1, 3, 8])
def test_step_is_sequence(context):
    """Also beyond the context, where the oldest frames have slid out."""
    net, (x, label, cond) = build(context=context), inputs()
    _, last = check_step_is_sequence(net, x, label, cond, rtol=1e-6, atol=1e-7)
    assert {"k", "v", "position"} <= last.keys()


def test_a_frame_hears_of_its_context_and_of_nothing_later():
    """Of two layers and a context of 3, frame 5 hears of all frames through the layers, of frames 2..5 directly."""
    net, (x, label, cond) = build(layers=1), inputs(batch=1)
    for given in (x, label, cond["token"]["action"]):
        given.requires_grad_()
    out, _ = net(x, label, net.init_state(1), cond)
    for t in range(6):
        wanted = out[:, t].square().sum()
        for gradient in torch.autograd.grad(wanted, [x, label, cond["token"]["action"]], retain_graph=True):
            heard = gradient[0].flatten(1).abs().sum(1) if gradient.ndim > 2 else gradient[0].abs()
            assert [bool(value > 0) for value in heard] == [max(0, t - 3) <= s <= t for s in range(6)]


def test_all_places_of_a_frame_hear_of_each_other():
    net, (x, label, cond) = build(), inputs(batch=1, time=1)
    x.requires_grad_()
    out, _ = net(x, label, net.init_state(1), cond)
    gradient, = torch.autograd.grad(out[0, 0, :, 0, 0].square().sum(), x)
    assert (gradient.abs() > 0).all()


def test_rows_may_have_seen_different_numbers_of_frames():
    net, (x, label, cond) = build(), inputs()
    action = cond["token"]["action"]
    one = net.absorb(x[:1, :2], label[:1, :2], net.init_state(1), {"token": {"action": action[:1, :2]}})
    other = net.absorb(x[1:, :4], label[1:, :4], net.init_state(1), {"token": {"action": action[1:, :4]}})
    both = {name: torch.cat([one[name], other[name]]) for name in one}
    now = slice(5, 6)
    together, _ = net(x[:, now], label[:, now], both, part(cond, now))
    for row, state in enumerate((one, other)):
        alone, _ = net(x[row:row + 1, now], label[row:row + 1, now], state,
                           {"token": {"action": action[row:row + 1, now]}})
        torch.testing.assert_close(together[row:row + 1], alone, rtol=1e-6, atol=1e-7)


def test_states_are_values():
    net, (x, label, cond) = build(), inputs()
    state = net.init_state(2)
    before = {name: value.clone() for name, value in state.items()}
    net(x, label, state, cond)
    assert all(torch.equal(state[name], before[name]) for name in before)


def test_every_input_and_every_weight_matters():
    net, (x, label, cond) = build(), inputs()
    given = [x, label, cond["token"]["action"]]
    for value in given:
        value.requires_grad_()
    out, _ = net(x, label, net.init_state(2), cond)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(out.square().sum(), [*given, *net.parameters()]))


def test_checkpointing_gives_equal_gradients():
    x, label, cond = inputs(time=3)
    found = []
    for checkpointing in (False, True):
        net = build(checkpointing=checkpointing)
        net(x, label, net.init_state(2), cond)[0].square().mean().backward()
        found.append([p.grad for p in net.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_sampling_by_cache_is_the_double_loop():
    schedule = cosine(50)
    denoiser = Precond(build(context=2), schedule, "v")
    x, label, cond = inputs(time=3)
    matrix = pyramid(schedule.grid(3), 3, 3)
    state = denoiser.absorb(x, torch.zeros(2, 3, dtype=torch.long), denoiser.init_state(2), cond)
    rows, loop = (generate(denoiser, schedule, matrix, x, state=state, cond=cond, path=path)
                  for path in ("rows", "double_loop"))
    torch.testing.assert_close(rows, loop, rtol=1e-5, atol=1e-6)


def test_history_guidance_keeps_a_chunk_whole():
    """Its finished tokens would be noised like the past if they were absorbed before the chunk is done."""
    schedule = cosine(50)
    plain = Precond(build(context=2), schedule, "v")
    guided = history_guided(plain, schedule, vanilla(2.0))
    x, label, cond = inputs(time=3)
    matrix = pyramid(schedule.grid(3), 3, 3)
    state = guided.absorb(x, torch.zeros(2, 3, dtype=torch.long), guided.init_state(2), cond)
    auto, loop = (generate(guided, schedule, matrix, x, state=state, cond=cond, path=path)
                  for path in ("auto", "double_loop"))
    assert torch.equal(auto, loop)
    assert not torch.allclose(auto, generate(plain, schedule, matrix, x, state=state["past"][0], cond=cond))
    with pytest.raises(ValueError, match="without history guidance"):
        generate(guided, schedule, matrix, x, state=state, cond=cond, path="rows")


def test_built_from_a_configuration():
    config = {"net": {"_target_": "dforce.nets.frames.FrameTransformerNet", **OPTIONS, "multipliers": [1, 2]},
              "schedule": {"_target_": "dforce.core.schedule.cosine", "levels": 10}, "predict": "v"}
    denoiser = build_denoiser(config, {"event_shape": list(EVENT), "token": {"action": 2}})
    x, _, cond = inputs()
    out, _ = denoiser(x.float(), torch.full((2, 6), 5), denoiser.init_state(2),
                      {"token": {"action": cond["token"]["action"].float()}})
    assert out.shape == x.shape and denoiser.causal and not denoiser.recurrent


@pytest.mark.parametrize("options, message", [
    ({"heads": 3}, "a multiple of 2 \\* heads"), ({"context": 0}, "context=0"), ({"patch": 3}, "power of two"),
    ({"patch": 16}, "do not divide"),
])
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)
