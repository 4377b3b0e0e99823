"""Alignment losses against numbers worked out by hand, the arithmetic of published code, and their symmetries."""

from __future__ import annotations

import math

import pytest
import torch

from dforce.align import (
    clip_fraction,
    d3po,
    ddpo_is,
    ddpo_sf,
    denoising_error,
    diffusion_dpo,
    diffusion_nft,
    dpok,
    draw_levels,
    exponential_weight,
    filtered_weight,
    kl,
    kl_penalty,
    optimality,
    record,
    replay,
    weighted_regression,
)
from dforce.core.loss import corrupt, snr
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.schedule import cosine, linear
from tests.align_bed import Gaussian, networks

F64 = torch.float64


def cells(*values, dims=None):
    """[B, S, T] from nested lists; dims 2 unless told."""
    tensor = torch.tensor(values, dtype=F64)
    return tensor, torch.full_like(tensor, 2.0) if dims is None else torch.tensor(dims, dtype=F64)


# --------------------------------------------------------------------------------------------------- policy gradients

def test_score_function_by_hand() -> None:
    log_prob, dims = cells([[-1.0, -2.0]], [[-3.0, -4.0]], dims=[[[2.0, 2.0]], [[4.0, 0.0]]])
    advantage = torch.tensor([1.0, -0.5], dtype=F64)
    # per dimension: -.5, -1 | -.75, (held); three cells move
    assert float(ddpo_sf(log_prob, advantage, dims)) == pytest.approx(-((-0.5 - 1.0) + -0.5 * -0.75) / 3)
    # one action a step: -3 / 4 | -7 / 4: the held token's nats are 0 in a trace; here they count what they are
    assert float(ddpo_sf(log_prob, advantage, dims, reduce="sequence")) == pytest.approx(-(-0.75 + -0.5 * -1.75) / 2)
    per_token = torch.tensor([[2.0, 0.0], [1.0, 5.0]], dtype=F64)
    assert float(ddpo_sf(log_prob, per_token, dims)) == pytest.approx(-(2 * -0.5 + 0 + -0.75) / 3)


def test_importance_sampling_by_hand() -> None:
    # log-ratios in nats .1, -.4, .3, -.1 over two dimensions; clip .2 nats
    log_prob, dims = cells([[0.1]], [[-0.4]], [[0.3]], [[-0.1]])
    old, advantage = torch.zeros_like(log_prob), torch.tensor([1.0, 1.0, 1.0, -2.0], dtype=F64)
    up = math.exp(0.1)                                                                   # the upper bound e^(.2 / 2)
    wanted = [math.exp(0.05), math.exp(-0.2), up, -2 * math.exp(-0.05)]
    assert float(ddpo_is(log_prob, old, advantage, dims, clip_nats=0.2)) == pytest.approx(-sum(wanted) / 4)
    assert float(clip_fraction(log_prob, old, dims, clip_nats=0.2)) == 0.5
    log_prob.requires_grad_()
    gradient, = torch.autograd.grad(ddpo_is(log_prob, old, advantage, dims, clip_nats=0.2), log_prob)
    by_hand = [-math.exp(0.05) / 8, -math.exp(-0.2) / 8, 0.0, 2 * math.exp(-0.05) / 8]   # the third is clipped
    torch.testing.assert_close(gradient.flatten(), torch.tensor(by_hand, dtype=F64))


def test_the_published_clip_is_the_same_in_nats() -> None:
    """TRL 0.23.1 and ddpo-pytorch: log-prob a mean over C H W, clip 1 +- 1e-4; that is 1.64 nats at 16,384."""
    size, clip = 4 * 64 * 64, 1e-4
    generator = torch.Generator().manual_seed(0)
    nats = 3 * torch.randn(64, 5, 1, generator=generator, dtype=F64)
    advantage = torch.randn(64, generator=generator, dtype=F64)
    ratio = (nats / size).exp()
    theirs = torch.maximum(-advantage[:, None, None] * ratio,
                           -advantage[:, None, None] * ratio.clamp(1 - clip, 1 + clip)).mean()
    dims = torch.full_like(nats, float(size))
    ours = ddpo_is(nats, torch.zeros_like(nats), advantage, dims, clip_nats=clip * size)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)
    outside = ((ratio - 1).abs() > clip).double().mean()
    told = clip_fraction(nats, 0 * nats, dims, clip_nats=clip * size)
    assert 0.3 < float(outside) and abs(float(told - outside)) < 0.02


@pytest.mark.parametrize("reduce", ["token", "sequence"])
def test_at_ratio_one_importance_sampling_has_the_gradient_of_the_score_function(reduce) -> None:
    schedule = cosine(100)
    model = networks(schedule)["recurrent"].double()
    x = torch.randn(6, 4, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    trace = record(model, schedule, pyramid(schedule.grid(5), 4, 2), x, noise=Noise(1))
    advantage = torch.randn(6, generator=torch.Generator().manual_seed(2), dtype=F64)
    found = replay(trace, model, schedule)
    losses = (ddpo_sf(found.log_prob, advantage, found.dims, reduce=reduce),
              ddpo_is(found.log_prob, found.log_prob.detach(), advantage, found.dims, reduce=reduce),
              dpok(found.log_prob, advantage, 0 * found.log_prob, found.dims, kl_weight=1.0, reduce=reduce))
    gradients = [torch.autograd.grad(loss, tuple(model.parameters()), retain_graph=True, allow_unused=True)
                 for loss in losses]
    for one, two, three in zip(*gradients, strict=True):
        if one is not None:
            assert torch.equal(one, two) or torch.allclose(one, two, rtol=1e-12, atol=1e-15)
            assert torch.allclose(one, three, rtol=1e-12, atol=1e-15)
    assert max(float(g.abs().max()) for g in gradients[0] if g is not None) > 1e-3


def test_the_policy_gradient_is_the_derivative_of_the_expected_reward() -> None:
    """One free mean: DDPO-SF against the difference quotient of the mean reward under the same noise."""
    schedule = linear(1000)
    model = Gaussian(schedule, 0.2, 0.8, dtype=F64)
    x = Noise(1)(0, 0, torch.empty(40_000, 1, 1, dtype=F64))
    trace = record(model, schedule, schedule.grid(4)[:, None], x, min_std=0.05, noise=Noise(2))
    reward = -(trace.x[:, -1, 0, 0] - 1).square()
    found = replay(trace, model, schedule)
    loss = ddpo_sf(found.log_prob, reward - reward.mean(), found.dims) * found.dims[0].sum()  # the sum over steps
    gradient, = torch.autograd.grad(-loss, model.mean)
    step = 1e-3                                                                         # of the mean, same noise
    means = []
    for shift in (-step, step):
        with torch.no_grad():
            model.mean += shift
        moved = record(model, schedule, schedule.grid(4)[:, None], x, min_std=0.05, noise=Noise(2))
        means.append(float(-(moved.x[:, -1, 0, 0] - 1).square().mean()))
        with torch.no_grad():
            model.mean -= shift
    assert float(gradient) == pytest.approx((means[1] - means[0]) / (2 * step), rel=0.05)


def test_advantages_zero_and_constant_rewards_teach_nothing() -> None:
    log_prob, dims = torch.randn(3, 2, 2, dtype=F64, requires_grad=True), torch.full((3, 2, 2), 2.0, dtype=F64)
    zero = torch.zeros(3, dtype=F64)
    for loss in (ddpo_sf(log_prob, zero, dims), ddpo_is(log_prob, log_prob.detach(), zero, dims)):
        assert (torch.autograd.grad(loss, log_prob)[0] == 0).all()


def test_tokens_that_do_not_move_are_left_out() -> None:
    log_prob, dims = cells([[0.3, 0.0], [0.1, 0.2]], dims=[[[2.0, 0.0], [2.0, 2.0]]])
    advantage, old = torch.ones(1, dtype=F64), torch.zeros(1, 2, 2, dtype=F64)
    kept = sum(math.exp(v / 2) for v in (0.3, 0.1, 0.2)) / 3
    assert float(ddpo_is(log_prob, old, advantage, dims, clip_nats=9.0)) == pytest.approx(-kept)  # not / 4, no ratio 1
    assert float(kl_penalty(log_prob, dims)) == pytest.approx((0.15 + 0.05 + 0.1) / 3)
    assert float(kl_penalty(log_prob, dims, reduce="sequence")) == pytest.approx((0.15 + 0.3 / 4) / 2)
    nothing = torch.zeros_like(dims)
    assert float(ddpo_is(log_prob, old, advantage, nothing)) == 0.0


def test_dpok_is_reward_and_kl_in_one_unit() -> None:
    log_prob, dims = cells([[-1.0]], [[-2.0]])
    penalty, advantage = torch.tensor([[[0.4]], [[0.2]]], dtype=F64), torch.tensor([1.0, -1.0], dtype=F64)
    plain = float(ddpo_sf(log_prob, advantage, dims))
    assert float(dpok(log_prob, advantage, penalty, dims, kl_weight=0.5)) == pytest.approx(plain + 0.5 * 0.15)
    with_old = dpok(log_prob, advantage, penalty, dims, kl_weight=0.5, old=log_prob + 0.2, clip_nats=1.0)
    alone = ddpo_is(log_prob, log_prob + 0.2, advantage, dims, clip_nats=1.0)
    assert float(with_old) == pytest.approx(float(alone) + 0.5 * 0.15)


@pytest.mark.slow
def test_dpok_finds_the_optimum_of_reward_less_kl() -> None:
    """E[-(x0 - 1)^2] - w KL over the mean: gradient ascent by the loss ends where the closed form says."""
    schedule = linear(1000)
    model, reference = (Gaussian(schedule, m, 0.8, dtype=F64) for m in (0.0, 0.0))
    noise, weight, matrix = Noise(2), 0.02, schedule.grid(4)[:, None]
    x = Noise(1)(0, 0, torch.empty(1500, 1, 1, dtype=F64))
    optimizer = torch.optim.Adam([model.mean], lr=0.05)
    for _ in range(40):
        trace = record(model, schedule, matrix, x, min_std=0.3, noise=noise)
        reward = -(trace.x[:, -1, 0, 0] - 1).square()
        found = replay(trace, model, schedule)
        loss = dpok(found.log_prob, reward - reward.mean(), kl(trace, found, reference, schedule), found.dims,
                    kl_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # all is linear: E x0 = a m + b and the summed KL = c m^2, read off at two means
    def ends(mean):
        with torch.no_grad():
            model.mean.fill_(mean)
            trace = record(model, schedule, matrix, x, min_std=0.3, noise=noise)
            return float(trace.x[:, -1].mean()), float(kl(trace, model, reference, schedule).sum((1, 2)).mean())
    found_mean = float(model.mean.detach())
    (b, _), (end, c) = ends(0.0), ends(1.0)
    a = end - b
    best = a * (1 - b) / (a * a + weight * c)
    assert found_mean == pytest.approx(best, abs=0.05) and 0.1 < best < 0.9


# --------------------------------------------------------------------------------------------------------- preferences

def test_diffusion_dpo_by_hand_and_at_the_start() -> None:
    win, lose, win_ref, lose_ref = torch.tensor([[1.0, 3.0], [2.0, 2.0], [1.5, 3.0], [2.0, 1.0]], dtype=F64)
    inside = [-0.5 * 2.0 * ((1.0 - 1.5) - (2.0 - 2.0)), -0.5 * 2.0 * ((3.0 - 3.0) - (2.0 - 1.0))]
    wanted = -sum(math.log(1 / (1 + math.exp(-v))) for v in inside) / 2
    assert float(diffusion_dpo(win, lose, win_ref, lose_ref, beta=2.0)) == pytest.approx(wanted)
    assert float(diffusion_dpo(win, lose, win, lose, beta=5000.0)) == pytest.approx(math.log(2), abs=1e-15)


def test_diffusion_dpo_starts_at_log_two_with_a_gradient_that_swapping_negates() -> None:
    schedule = cosine(100)
    model, reference = (networks(schedule)["image"].double() for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    pair = torch.randn(2, 8, 2, 3, generator=generator, dtype=F64)
    level, noise = draw_levels(schedule, pair[0], generator)
    gradients = []
    for win, lose in (pair, pair.flip(0)):
        errors = [denoising_error(net, schedule, x0, level, noise) for net in (model, reference) for x0 in (win, lose)]
        loss = diffusion_dpo(*errors[:2], *(error.detach() for error in errors[2:]), beta=50.0)
        assert abs(float(loss.detach()) - math.log(2)) < 1e-12
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, tuple(model.net.parameters()))]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(gradients[0], -gradients[1])
    # the misprint found in notes (|eps_ref - eps_theta|^2, the loser's bracket squared) has no gradient there at all
    x0 = pair[0]
    noisy = corrupt(schedule, x0, level, noise)
    ours, theirs = (net(noisy, level, net.init_state(8))[0] for net in (model, reference))
    misprint = (ours - theirs.detach()).square().mean()
    assert all((g == 0).all() for g in torch.autograd.grad(misprint, tuple(model.net.parameters())))


def test_denoising_error_is_the_error_of_the_noise() -> None:
    schedule = linear(100)
    model = networks(schedule)["image"].double()
    x0 = torch.randn(5, 2, 3, dtype=F64, generator=torch.Generator().manual_seed(1))
    level, noise = draw_levels(schedule, x0, torch.Generator().manual_seed(2), shared=False)
    assert level.min() >= 1 and (level[:, 0] != level[:, 1]).any()
    noisy, (alpha, sigma) = corrupt(schedule, x0, level, noise), schedule(level, x0)
    x0_hat, _ = model(noisy, level, model.init_state(5))
    eps_hat = (noisy - alpha * x0_hat) / sigma
    found = denoising_error(model, schedule, x0, level, noise)
    torch.testing.assert_close(found, (eps_hat - noise).square().mean((1, 2)))
    mask = torch.ones_like(x0, dtype=torch.bool)
    mask[:, 1, 2] = False
    masked = ((eps_hat - noise).square() * mask).sum((1, 2)) / 5
    torch.testing.assert_close(denoising_error(model, schedule, x0, level, noise, mask=mask), masked)
    capped = denoising_error(model, schedule, x0, level, noise, weight=snr(2.0))
    factor = schedule.log_snr(level).exp().clamp(max=2.0)[..., None]
    torch.testing.assert_close(capped, (factor * (x0_hat - x0).square()).mean((1, 2)))
    assert torch.equal(*draw_levels(schedule, x0, torch.Generator().manual_seed(2))[0].T)  # shared: one for all tokens


def test_d3po_by_hand() -> None:
    win, dims = cells([[0.4, 0.0]], dims=[[[2.0, 0.0]]])
    lose, reference = torch.tensor([[[-0.2, 0.0]]], dtype=F64), torch.zeros(1, 1, 2, dtype=F64)
    args = win, lose, reference, reference, dims
    assert float(d3po(*args, beta=3.0)) == pytest.approx(math.log(1 + math.exp(-3 * (0.2 - -0.1))))
    assert float(d3po(*args, beta=3.0, clip_nats=0.1)) == pytest.approx(math.log(1 + math.exp(-3 * (0.05 - -0.05))))
    assert float(d3po(reference, reference, reference, reference, dims)) == pytest.approx(math.log(2))
    assert float(d3po(win, win, reference, reference, dims)) == pytest.approx(math.log(2))
    assert float(d3po(*args, beta=3.0, reduce="sequence")) == pytest.approx(math.log(1 + math.exp(-0.9)))
    win.requires_grad_()
    assert float(torch.autograd.grad(d3po(*args, clip_nats=0.1), win)[0].abs().max()) == 0  # beyond the clip


# ---------------------------------------------------------------------------------------------------------- regression

def test_weights_by_hand() -> None:
    reward = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=F64)
    weight = exponential_weight(reward, 1.0)
    wanted = torch.tensor([math.exp(v) for v in range(4)], dtype=F64)
    torch.testing.assert_close(weight, 4 * wanted / wanted.sum())
    torch.testing.assert_close(exponential_weight(reward + 1e4, 1.0), weight)            # no overflow, no offset
    assert torch.equal(exponential_weight(reward, 0.0), torch.ones(4, dtype=F64))
    assert filtered_weight(reward, 0.5).tolist() == [0, 0, 2, 2]
    assert filtered_weight(reward, 0.1).tolist() == [0, 0, 0, 4]
    assert filtered_weight(torch.ones(4), 0.25).tolist() == [1, 1, 1, 1]                 # a constant reward: all alike
    error = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=F64)
    assert float(weighted_regression(error, filtered_weight(reward, 0.5))) == 3.5


def test_nft_by_hand() -> None:
    prediction, old, target = (torch.full((1, 1, 2), v, dtype=F64) for v in (1.0, 0.5, 2.0))
    # v+ = .5 + .5 * .5 = .75, v- = .25: errors 1.5625 and 3.0625
    found = diffusion_nft(prediction, old, target, torch.tensor([0.8], dtype=F64), beta=0.5)
    assert float(found) == pytest.approx(0.8 * 1.5625 + 0.2 * 3.0625)
    weight = torch.tensor([[3.0]], dtype=F64)
    assert float(diffusion_nft(prediction, old, target, torch.tensor([0.8], dtype=F64), beta=0.5, weight=weight)) == (
        pytest.approx(3 * float(found)))


def test_nft_has_its_minimum_where_its_docstring_says() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(500, 1, 3, generator=generator, dtype=F64)
    reward = torch.rand(500, generator=generator, dtype=F64)
    old, beta = torch.full((1, 1, 3), 0.3, dtype=F64), 0.7
    best = old + ((2 * reward - 1).view(-1, 1, 1) * (target - old)).mean(0, keepdim=True) / beta
    shared = best.clone().requires_grad_()
    loss = diffusion_nft(shared.expand_as(target), old.expand_as(target), target, reward, beta=beta)
    assert float(torch.autograd.grad(loss, shared)[0].abs().max()) < 1e-15
    start = old.clone().requires_grad_()
    half = diffusion_nft(start.expand_as(target), old.expand_as(target), target, torch.full((500,), 0.5, dtype=F64))
    assert float(torch.autograd.grad(half, start)[0].abs().max()) < 1e-15                # indifferent: no change
    mask = torch.zeros_like(target, dtype=torch.bool)
    mask[..., 0] = True
    only = diffusion_nft(best.expand_as(target), old.expand_as(target), target, reward, beta=beta, mask=mask)
    part = diffusion_nft(*(v.expand_as(target)[..., :1] for v in (best, old, target)), reward, beta=beta)
    torch.testing.assert_close(only, part)


def test_optimality_is_a_probability() -> None:
    assert optimality(torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]), 2.0).tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


# ------------------------------------------------------------------------------------------------------------ refusals

def test_ranks_and_ranges_are_checked() -> None:
    log_prob, dims, advantage = torch.zeros(3, 2, 4), torch.ones(3, 2, 4), torch.zeros(3)
    bad = [
        (lambda: ddpo_sf(log_prob[0], advantage, dims[0]), r"log_prob, dims must all be \[B, S, T\], got log_prob \[2"),
        (lambda: ddpo_is(log_prob, log_prob[:, :1], advantage, dims), r"old \[3, 1, 4\]"),
        (lambda: ddpo_is(log_prob, log_prob, advantage[:2], dims), r"advantages are \[B\].*got \[2\]"),
        (lambda: ddpo_is(log_prob, log_prob, torch.zeros(3, 2), dims), r"for actions \[3, 2, 4\], got \[3, 2\]"),
        (lambda: ddpo_sf(log_prob, torch.zeros(3, 4), dims, reduce="sequence"), r"\[B\] or \[B, S\].*got \[3, 4\]"),
        (lambda: ddpo_sf(log_prob, advantage, dims, reduce="mean"), "'token' or 'sequence', got 'mean'"),
        (lambda: ddpo_is(log_prob, log_prob, advantage, dims, clip_nats=0.0), "clip_nats must be positive, got 0.0"),
        (lambda: dpok(log_prob, advantage, log_prob, dims, kl_weight=-1.0), "kl_weight must be >= 0, got -1.0"),
        (lambda: diffusion_dpo(*[torch.zeros(3, 1)] * 4), r"must all be \[B\], got win \[3, 1\]"),
        (lambda: diffusion_dpo(*[advantage] * 4, beta=-1.0), "beta must be positive"),
        (lambda: weighted_regression(advantage, torch.ones(2)), r"weight \[2\]"),
        (lambda: filtered_weight(advantage, 0.0), r"\(0, 1\], got 0"),
        (lambda: diffusion_nft(*[torch.zeros(3, 1, 2)] * 3, torch.tensor([0.0, 0.5, 1.5])), r"probability.*got 0..1.5"),
        (lambda: diffusion_nft(*[torch.zeros(3, 1, 2)] * 2, torch.zeros(2, 1, 2), advantage), "alike"),
        (lambda: d3po(*[log_prob] * 4, dims, clip_nats=0.0), "clip_nats must be positive"),
    ]
    for call, told in bad:
        with pytest.raises(ValueError, match=told):
            call()
    ddpo_is(log_prob, log_prob, torch.zeros(3, 4), dims), ddpo_is(log_prob, log_prob, torch.zeros(3, 2, 4), dims)
    ddpo_sf(log_prob, torch.zeros(3, 2), dims, reduce="sequence")
