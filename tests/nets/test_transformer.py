"""The transformer: causal, the same step by step as at once, from any position of each row, and past its context."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.loss import forcing_loss
from dforce.core.matrix import pyramid
from dforce.core.rollout import rollout
from dforce.core.sample import generate
from dforce.core.schedule import cosine
from dforce.core.tree import leaves, reset, select
from dforce.guidance.energy import guided
from dforce.guidance.monte_carlo import monte_carlo
from dforce.guidance.wrapper import classifier_free
from dforce.nets import transformer
from dforce.nets.transformer import TransformerNet
from tests.gaussian_bed import Causal, ar1
from tests.stepwise import part

CONDITIONED = {"static": {"start": 4}, "token": {"action": 2}}


def make(context: int = 6, **kwargs) -> TransformerNet:
    torch.manual_seed(0)
    return TransformerNet((3,), width=32, depth=3, heads=2, context=context, **kwargs)


def inputs(batch: int = 2, time: int = 8, seed: int = 1):
    g = torch.Generator().manual_seed(seed)
    cond = {"static": {"start": torch.randn(batch, 4, generator=g)},
            "token": {"action": torch.randn(batch, time, 2, generator=g)}}
    return torch.randn(batch, time, 3, generator=g), torch.randn(batch, time, generator=g), cond


@pytest.mark.parametrize("context", [1, 5, 16])  # shorter than the sequence of 8, and longer
@pytest.mark.parametrize("sizes", [[1] * 8, [3, 5], [2, 1, 5]])
def test_pieces_through_the_state_are_the_sequence(context, sizes):
    net, (x, label, cond) = make(context, **CONDITIONED), inputs()
    whole, last = net(x, label, net.init_state(2, cond), cond)
    state = absorbed = net.init_state(2, cond)
    at, out = 0, []
    for size in sizes:
        now = slice(at, at + size)
        piece, state = net(x[:, now], label[:, now], state, part(cond, now))
        absorbed = net.absorb(x[:, now], label[:, now], absorbed, part(cond, now))
        out.append(piece)
        at += size
    torch.testing.assert_close(torch.cat(out, 1), whole, rtol=0, atol=1e-5)
    for one, other, third in zip(leaves(state), leaves(last), leaves(absorbed), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        torch.testing.assert_close(one, third, rtol=0, atol=1e-5)
    assert {name: leaf.shape for name, leaf in state.items()} == {
        name: leaf.shape for name, leaf in net.init_state(2, cond).items()}


def test_a_token_sees_itself_and_its_context_and_nothing_later():
    net = make(context=2)
    x, label, _ = inputs(1)
    x.requires_grad_(), label.requires_grad_()
    out, _ = net(x, label, net.init_state(1))
    for t in range(8):
        dx, dlabel = torch.autograd.grad(out[0, t].sum(), (x, label), retain_graph=True)
        seen = [i for i in range(8) if t - 2 * net.depth <= i <= t]  # each layer looks 2 further back
        assert (dx[0].abs().sum(-1) > 0).nonzero()[:, 0].tolist() == seen
        assert (dlabel[0] != 0).nonzero()[:, 0].tolist() == seen


def test_gradients_pass_through_the_state():
    net, (x, label, _) = make(), inputs()
    x.requires_grad_()
    whole, _ = net(x, label, net.init_state(2))
    first, state = net(x[:, :5], label[:, :5], net.init_state(2))
    second, _ = net(x[:, 5:], label[:, 5:], state)
    expected, = torch.autograd.grad(whole.square().sum(), x)
    found, = torch.autograd.grad(torch.cat([first, second], 1).square().sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [3, 16])
def test_rows_at_positions_of_their_own(context):
    net, (x, label, cond) = make(context, **CONDITIONED), inputs(3)
    fresh = net.init_state(3, cond)
    state = net.absorb(x[:, :5], label[:, :5], fresh, part(cond, slice(5)))
    state = reset(state, fresh, torch.tensor([False, True, False]))
    assert state["position"].tolist() == [5, 0, 5]
    now = slice(5, 8)
    out, after = net(x[:, now], label[:, now], state, part(cond, now))
    alone, _ = net(x[1:2, now], label[1:2, now], select(fresh, torch.tensor([1])), select(part(cond, now), slice(1, 2)))
    torch.testing.assert_close(out[1:2], alone, rtol=0, atol=1e-5)
    whole, _ = net(x, label, fresh, cond)
    torch.testing.assert_close(out[[0, 2]], whole[[0, 2], 5:], rtol=0, atol=1e-5)
    assert after["position"].tolist() == [8, 3, 8]


@pytest.mark.parametrize("context", [3, 16])
def test_places_of_the_cache_that_are_not_in_use_change_nothing(context, monkeypatch):
    net, (x, label, _) = make(context), inputs(3)
    state = net.absorb(x[:, :2], label[:, :2], net.init_state(3))
    looked, _ = net(x, label, state)  # on a CPU it leaves them out; elsewhere looking would wait for the device
    monkeypatch.setattr(transformer, "in_use", lambda position, context: context)
    all_shown, _ = net(x, label, state)
    torch.testing.assert_close(all_shown, looked, rtol=0, atol=1e-5)


def test_a_state_is_a_value():
    net, (x, label, _) = make(), inputs()
    state = net.absorb(x, label, net.init_state(2))
    before = [leaf.clone() for leaf in leaves(state)]
    net(x, label, state)
    net.absorb(x, label, state)
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old, new)


def test_far_from_the_beginning_only_distances_count():
    net, (x, label, _) = make(context=4), inputs(1)
    state = net.absorb(x, label, net.init_state(1))
    far = {**state, "position": state["position"] + 1_000_000}  # the same past, at positions of an endless run
    near = {**state, "position": state["position"] + 1_000}
    # The keys in the state were turned at their old positions: absorb until none of them is in sight of the last token.
    out = [net(x, label, net.absorb(x, label, s))[0] for s in (near, far)]
    torch.testing.assert_close(out[0][:, -1], out[1][:, -1], rtol=0, atol=1e-5)


def test_bfloat16_autocast_learns_and_keeps_the_state_in_float32():
    net, (x, label, cond) = make(**CONDITIONED), inputs()
    exact, _ = net(x, label, net.init_state(2, cond), cond)
    with torch.autocast("cpu", torch.bfloat16):
        first, state = net(x[:, :5], label[:, :5], net.init_state(2, cond), part(cond, slice(5)))
        second, state = net(x[:, 5:], label[:, 5:], state, part(cond, slice(5, 8)))
    out = torch.cat([first, second], 1).float()
    assert {leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()} == {torch.float32}
    assert (out - exact).abs().max() < 0.05 * exact.abs().max()
    out.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("delay", [1, 3])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_absorbing_equals_the_double_loop(delay, eta):
    schedule = cosine(50)
    denoiser = Precond(make(context=4, **CONDITIONED), schedule)
    x, _, cond = inputs()
    matrix = pyramid(schedule.grid(5), 8, delay)
    rows, loop = (generate(denoiser, schedule, matrix, x, cond=cond, eta=eta, path=path)
                  for path in ("rows", "double_loop"))
    torch.testing.assert_close(rows, loop, rtol=0, atol=1e-4)
    assert torch.equal(rows, generate(denoiser, schedule, matrix, x, cond=cond, eta=eta))  # what "auto" takes
    with pytest.raises(ValueError, match="recurrent"):
        generate(denoiser, schedule, matrix, x, cond=cond, path="wavefront")


def goal(x0):
    return -(x0[:, -1] - 1).square().sum(-1)


@pytest.mark.parametrize("futures", ["joint", "sequential"])
@pytest.mark.quick(1)
def test_monte_carlo_guidance_runs_unchanged(futures):
    schedule = cosine(50)
    denoiser = Precond(make(context=3), schedule)
    x, matrix = inputs(time=4)[0], pyramid(schedule.grid(3), 4, 2)
    one = monte_carlo(denoiser, schedule, goal, 1)
    plain = generate(guided(denoiser, schedule, goal), schedule, matrix, x)
    torch.testing.assert_close(generate(one, schedule, matrix, x), plain)
    many = monte_carlo(denoiser, schedule, goal, 3, futures=futures, chunk=2)
    rows, loop = (generate(many, schedule, matrix, x, path=path) for path in ("rows", "double_loop"))
    assert torch.isfinite(rows).all() and torch.isfinite(loop).all() and not torch.allclose(rows, plain)


def test_classifier_free_and_rollout_run_unchanged():
    schedule = cosine(50)
    denoiser = Precond(make(context=4, static={"start": 4}), schedule)
    cond, null = ({"static": {"start": value}} for value in (torch.ones(2, 4), torch.zeros(2, 4)))
    free = classifier_free(denoiser, 1.5, null)
    matrix = pyramid(schedule.grid(3), 4, 1)
    run = rollout(free, schedule, matrix, free.init_state(2, cond), (3,), batch=2, cond=cond, stabilise_std=0.1)
    chunks = [next(run) for _ in range(4)]
    assert all(torch.isfinite(chunk).all() for chunk, _ in chunks)
    assert chunks[-1][1]["cond"]["position"].tolist() == [16, 16]
    assert chunks[-1][1]["cond"]["k"].shape == chunks[0][1]["cond"]["k"].shape  # constant memory


@pytest.mark.parametrize("context", [1, 3])
def test_without_its_mask_a_token_sees_its_context_on_both_sides(context):
    net, (x, label, _) = make(context, causal=False), inputs(1)
    x.requires_grad_()
    out, _ = net(x, label, net.init_state(1))
    gradient, = torch.autograd.grad(out[0, 0].sum(), x)
    assert (gradient[0].abs().sum(-1) > 0).tolist() == [t <= context * net.depth for t in range(8)]


def test_without_its_mask_all_tokens_see_each_other_and_nothing_is_absorbed():
    schedule = cosine(50)
    net = make(context=16, causal=False, **CONDITIONED)
    x, label, cond = inputs()
    x.requires_grad_()
    out, state = net(x, label, net.init_state(2, cond), cond)
    gradient, = torch.autograd.grad(out[:, 0].sum(), x)
    assert (gradient.abs().sum(-1) > 0).all() and set(state) == {"start"}
    with pytest.raises(ValueError, match="keeps no past"):
        net.absorb(x, label, state, cond)
    with pytest.raises(ValueError, match="not causal"):
        Precond(net, schedule).absorb(x, torch.zeros(2, 8, dtype=torch.long), state, cond)


@pytest.mark.slow
def test_it_learns_the_exact_denoiser_of_a_known_process():
    torch.manual_seed(0)
    schedule, g = cosine(200), torch.Generator().manual_seed(0)
    net = TransformerNet((1,), width=32, depth=2, heads=2, context=8)
    learnt = Precond(net, schedule)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(150):
        loss, _ = forcing_loss(learnt, schedule, ar1(64, 16, g), generator=g)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    x0, losses = ar1(512, 16, g), []
    for denoiser in (learnt, Causal(schedule)):
        with torch.no_grad():
            losses.append(float(forcing_loss(denoiser, schedule, x0, generator=torch.Generator().manual_seed(1))[0]))
    assert losses[1] < losses[0] < 1.2 * losses[1]


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"multiple of 2 \* heads"):
        TransformerNet((3,), width=30, heads=4)
    net = make(**CONDITIONED)
    with pytest.raises(ValueError, match="start.*size 4"):
        net.init_state(2)
    x, label, cond = inputs()
    with pytest.raises(ValueError, match=r"tokens \[B, T, 3\]"):
        net(x[..., :2], label, net.init_state(2, cond), cond)
    with pytest.raises(ValueError, match="holds 2 rows for a batch of 3"):
        net.init_state(3, cond)
