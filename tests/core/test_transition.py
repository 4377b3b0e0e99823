"""The one Gaussian step: DDPM and DDIM as their papers write them, held tokens untouched, densities that of torch."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from dforce.core.diffusers_schedule import from_diffusers
from dforce.core.loss import corrupt
from dforce.core.schedule import Schedule, cosine, flow, linear
from dforce.core.transition import Gaussian, renoise, transition

VE = Schedule(torch.ones(101), torch.cat([torch.zeros(1), torch.logspace(-2, 2, 100)]))
SCHEDULES = {"linear": linear(1000), "cosine": cosine(100), "flow": flow(100), "ve": VE}


def tokens(seed=0, batch=3, time=4, event=(2,), dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, time, *event, generator=g, dtype=dtype)


def pair(schedule, seed=0, batch=3, time=4):
    """Random levels level > to >= 0."""
    g = torch.Generator().manual_seed(seed)
    level = torch.randint(1, schedule.levels + 1, (batch, time), generator=g)
    return level, (level * torch.rand(batch, time, generator=g)).long()


# ------------------------------------------------------------------------------------------- the papers, in float64

@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_equals_ddim_paper(eta):
    """Song et al. (2021), eq. 12 and 16, transcribed in their alpha_bar and eps."""
    s, (x, x0) = linear(1000), tokens()
    level, to = pair(s)
    a_t, a_s = (s.alpha[level] ** 2)[..., None], (s.alpha[to] ** 2)[..., None]
    eps = (x - a_t.sqrt() * x0) / (1 - a_t).sqrt()
    sigma = eta * ((1 - a_s) / (1 - a_t)).sqrt() * (1 - a_t / a_s).sqrt()
    mean = a_s.sqrt() * x0 + (1 - a_s - sigma**2).sqrt() * eps
    kernel = transition(s, x, x0, level, to, eta=eta)
    torch.testing.assert_close(kernel.mean, mean, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(kernel.std, sigma.expand_as(x), rtol=1e-9, atol=1e-11)


def test_equals_ddpm_paper():
    """Ho et al. (2020), eq. 6 and 7, for neighbouring levels; eq. 7 with the jump's own beta for longer ones."""
    s, (x, x0) = linear(1000), tokens()
    level, far = pair(s)
    for to in (level - 1, far):
        bar_t, bar_s = (s.alpha[level] ** 2)[..., None], (s.alpha[to] ** 2)[..., None]
        beta = 1 - bar_t / bar_s
        mean = (bar_s.sqrt() * beta / (1 - bar_t)) * x0 + ((1 - beta).sqrt() * (1 - bar_s) / (1 - bar_t)) * x
        kernel = transition(s, x, x0, level, to, eta=1.0)
        torch.testing.assert_close(kernel.mean, mean, rtol=1e-8, atol=1e-10)
        variance = (1 - bar_s) / (1 - bar_t) * beta
        torch.testing.assert_close(kernel.std**2, variance.expand_as(x), rtol=1e-8, atol=1e-12)


def test_the_posterior_by_bayes_rule():
    """eta = 1 is q(x_s | x_t, x0) of any path (alpha, sigma): precision-weighted product, with no diffusion algebra."""
    for s in SCHEDULES.values():
        x, x0 = tokens(3)
        level, to = pair(s, 3)
        to = to.clamp(min=1).minimum(level - 1)
        live = to >= 1
        (a, b), (c, d) = s(level, x), s(to.clamp(min=1), x)
        scale, left = a / c, b**2 - (a / c * d) ** 2           # x_t | x_s ~ N(scale x_s, left)
        precision = 1 / d**2 + scale**2 / left
        mean = (c * x0 / d**2 + scale * x / left) / precision
        kernel = transition(s, x, x0, level, to, eta=1.0)
        torch.testing.assert_close(kernel.mean[live], mean[live], rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(kernel.std[live], precision.rsqrt().expand_as(x)[live], rtol=1e-7, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- diffusers

@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [10, 50])
def test_equals_diffusers_ddim(eta, steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, prediction_type="sample")
    scheduler.set_timesteps(steps)
    s, (x, x0) = from_diffusers(scheduler), tokens(dtype=torch.float32)
    noise = tokens(9, dtype=torch.float32)[0]
    # Their 1 - alpha_bar cancels in float32 towards the clean end; the papers' equations above hold to 1e-9 there.
    for t in scheduler.timesteps.tolist():
        level = torch.full(x.shape[:2], t + 1)
        to = (level - 1000 // steps).clamp(min=0)
        theirs = scheduler.step(x0, t, x, eta=eta, variance_noise=noise).prev_sample
        ours = transition(s, x, x0, level, to, eta=eta).sample(noise)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 if t >= 300 else 1e-4)


def test_equals_diffusers_ddpm():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(clip_sample=False, prediction_type="sample")
    s, (x, x0) = from_diffusers(scheduler), tokens(dtype=torch.float32)
    for t in (999, 700, 300, 200, 100, 5, 0):
        level = torch.full(x.shape[:2], t + 1)
        theirs = scheduler.step(x0, t, x, generator=torch.Generator().manual_seed(t)).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(t))
        ours = transition(s, x, x0, level, level - 1).sample(noise)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6 if t >= 200 else 4e-4)


# ------------------------------------------------------------------------------------------------------- held tokens

@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("options", [{}, {"eta": 0.0}, {"eta": 0.5}, {"std": 0.05}, {"min_std": 0.1}])
def test_held_tokens_are_bit_for_bit_and_differentiable(name, options):
    s = SCHEDULES[name]
    x, x0 = (v.requires_grad_() for v in tokens(dtype=torch.float32).unbind(0))
    level = torch.tensor([0, 1, s.levels // 2, s.levels]).expand(3, 4)
    kernel = transition(s, x, x0, level, level, **options)
    assert torch.equal(kernel.mean, x) and not kernel.std.any()
    assert torch.equal(kernel.sample(torch.ones_like(x)), x)
    grads = torch.autograd.grad((kernel.sample(torch.ones_like(x)) ** 2).sum() + kernel.log_prob(x).sum(), (x, x0))
    assert all(torch.isfinite(g).all() for g in grads)
    torch.testing.assert_close(grads[0], 2 * x.detach())
    # The same token held beside one that moves.
    to = level.clone()
    to[:, 2] = 0
    kernel = transition(s, x, x0, level, to, **options)
    held = torch.tensor([True, True, False, True])
    assert torch.equal(kernel.mean[:, held], x[:, held])
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(kernel.mean.sum(), (x, x0)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_last_step_returns_x0(name):
    s, (x, x0) = SCHEDULES[name], tokens(dtype=torch.float32)
    level, _ = pair(s)
    for eta in (0.0, 1.0):
        kernel = transition(s, x, x0, level, torch.zeros_like(level), eta=eta)
        assert torch.equal(kernel.mean, x0) and not kernel.std.any()


# ------------------------------------------------------------------------------------------------------ explicit std

@pytest.mark.parametrize("name", SCHEDULES)
def test_explicit_std_is_the_eta_form(name):
    s, (x, x0) = SCHEDULES[name], tokens()
    level, to = pair(s)
    by_eta = transition(s, x, x0, level, to, eta=0.6)
    by_std = transition(s, x, x0, level, to, eta=123.0, std=by_eta.std[..., 0])
    torch.testing.assert_close(by_std.mean, by_eta.mean)
    torch.testing.assert_close(by_std.std, by_eta.std)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        number = transition(s, x, x0, level, to, std=0.0)
    torch.testing.assert_close(number.mean, transition(s, x, x0, level, to, eta=0.0).mean)


def test_too_wide_an_std_is_clamped_and_says_so():
    s, (x, x0) = linear(1000), tokens()
    level, to = torch.full((3, 4), 500), torch.full((3, 4), 100)
    to[0, 0] = 0      # nothing to clamp to: no warning for it
    to[0, 1] = 500    # held
    with pytest.warns(UserWarning, match="10 tokens and was clamped"):
        kernel = transition(s, x, x0, level, to, std=3.0)
    torch.testing.assert_close(kernel.std[1], s.sigma[100].expand_as(x[1]))
    torch.testing.assert_close(kernel.mean[1], s.alpha[100] * x0[1])   # all of the noise is fresh
    assert not kernel.std[0, :2].any()
    with pytest.raises(ValueError, match="std must be >= 0, got a minimum of -1"):
        transition(s, x, x0, level, to, std=torch.tensor(-1.0))


def test_min_std_gives_the_last_step_a_density():
    s, (x, x0) = linear(1000), tokens()
    level = torch.full((3, 4), 50)
    to = torch.tensor([0, 0, 10, 50]).expand(3, 4)
    kernel, without = transition(s, x, x0, level, to, min_std=0.07), transition(s, x, x0, level, to)
    assert (kernel.std[:, :2] == 0.07).all() and torch.equal(kernel.mean, without.mean)
    assert torch.equal(kernel.std[:, 2:], without.std[:, 2:])
    assert kernel.dims().tolist() == [[2, 2, 2, 0]] * 3


# --------------------------------------------------------------------------------------------------------- marginals

@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_marginals_are_preserved_given_the_clean_token(name, eta):
    """With x = alpha x0 + sigma eps the step lands on q(x_to | x0), whatever its stochasticity: variances add up."""
    s = SCHEDULES[name]
    level, to = pair(s)
    x0 = tokens()[1]
    alpha, sigma = s(level, x0)
    alpha_s, sigma_s = s(to, x0)
    at_mean = transition(s, alpha * x0, x0, level, to, eta=eta)
    one_eps = transition(s, alpha * x0 + sigma, x0, level, to, eta=eta)
    torch.testing.assert_close(at_mean.mean, alpha_s * x0, rtol=1e-8, atol=1e-10)
    variance = (one_eps.mean - at_mean.mean) ** 2 + one_eps.std**2
    torch.testing.assert_close(variance, (sigma_s**2).expand_as(x0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "flow", "ve"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ideal_denoiser_walks_down_the_marginals(name, eta):
    """Gaussian data, std .5: the denoiser is linear, so the variance of the whole chain is known without sampling."""
    many = {"linear": linear(4000), "flow": flow(4000),
            "ve": Schedule(torch.ones(4001), torch.cat([torch.zeros(1), torch.logspace(-3, 2, 4000).double()]))}
    s, data = many[name], 0.25
    variance = s.alpha[-1] ** 2 * data + s.sigma[-1] ** 2
    level = torch.arange(s.levels, 0, -1)
    one = torch.ones(1, s.levels, 1, dtype=torch.float64)
    gain = (s.alpha * data / (s.alpha**2 * data + s.sigma**2))[level, None]
    kernel = transition(s, one, gain * one, level[None], level[None] - 1, eta=eta)  # every step of the chain at once
    wanted = (s.alpha**2 * data + s.sigma**2)[level - 1]
    steps = [each.flatten().tolist() for each in (level, kernel.mean**2, kernel.std**2, wanted)]
    for k, factor, added, right in zip(*steps, strict=True):
        variance = factor * variance + added
        assert abs(variance / right - 1) < 0.02, k


# --------------------------------------------------------------------------------------------------------- densities

@pytest.mark.parametrize("event", [(), (2,), (2, 3)])
def test_log_prob_kl_and_dims_are_those_of_torch(event):
    g = torch.Generator().manual_seed(1)
    mean, other, x = torch.randn(3, 2, 4, *event, generator=g).double()
    std, wide = torch.rand(2, 2, 4, *event, generator=g).double() + 0.1
    p, q = Gaussian(mean, std), Gaussian(other, wide)
    P, Q = (Independent(Normal(*d), len(event)) for d in (p, q))
    torch.testing.assert_close(p.log_prob(x), P.log_prob(x))
    torch.testing.assert_close(p.kl(q), kl_divergence(P, Q))
    assert (p.dims() == math.prod(event)).all() and p.log_prob(x).shape == (2, 4)
    torch.testing.assert_close(p.kl(p), torch.zeros(2, 4).double(), rtol=0, atol=1e-12)
    mask = torch.rand(2, 4, *event, generator=g) < 0.5
    by_hand = torch.where(mask, Normal(*p).log_prob(x), 0.0)
    torch.testing.assert_close(p.log_prob(x, mask), by_hand.flatten(2).sum(2) if event else by_hand)
    divergence = torch.where(mask, kl_divergence(Normal(*p), Normal(*q)), 0.0)
    torch.testing.assert_close(p.kl(q, mask), divergence.flatten(2).sum(2) if event else divergence)
    assert torch.equal(p.dims(mask), (mask.flatten(2).sum(2) if event else mask).double())


def test_deterministic_dimensions_count_nothing():
    mean = torch.randn(1, 2, 3, requires_grad=True)
    std = torch.tensor([[[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]])
    p = Gaussian(mean, std)
    assert p.dims().tolist() == [[2, 0]] and p.log_prob(mean.detach() + 5)[0, 1] == 0
    assert p.kl(Gaussian(mean + 1, std))[0].tolist() == pytest.approx([0.5 + 0.125, 0])
    grad, = torch.autograd.grad(p.log_prob(mean.detach() + 1).sum(), mean)
    assert torch.isfinite(grad).all() and not grad[0, 1].any()


def test_sampling_has_the_moments_it_says():
    p = Gaussian(torch.full((1, 1, 50_000), 2.0), torch.full((1, 1, 50_000), 0.3))
    drawn = p.sample(torch.Generator().manual_seed(0))
    assert abs(drawn.mean() - 2) < 0.01 and abs(drawn.std() - 0.3) < 0.01
    assert torch.equal(drawn, p.sample(torch.Generator().manual_seed(0)))


# ----------------------------------------------------------------------------------------------------------- renoise

@pytest.mark.parametrize("name", SCHEDULES)
def test_renoise_composes(name):
    """q(x_to | x_level) after q(x_level | x0) is q(x_to | x0): mean and variance, read off with unit noises."""
    s = SCHEDULES[name]
    low, high = torch.tensor([[0, 3, 5, 20]]), torch.tensor([[7, 3, 90, s.levels]])
    x0 = torch.full((1, 4, 1), 1.7).double()
    zero, one = torch.zeros_like(x0), torch.ones_like(x0)
    mean = renoise(s, corrupt(s, x0, low, zero), low, high, zero)
    first = renoise(s, corrupt(s, x0, low, one), low, high, zero) - mean
    second = renoise(s, corrupt(s, x0, low, zero), low, high, one) - mean
    alpha, sigma = s(high, x0)
    torch.testing.assert_close(mean, alpha * x0, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(first**2 + second**2, sigma**2, rtol=1e-8, atol=1e-10)
    assert torch.equal(renoise(s, x0, low, low, one), x0)


def test_renoise_of_held_noise_is_differentiable():
    s, x = flow(10), torch.randn(1, 2, 3, requires_grad=True)  # level 10 of a flow has alpha 0
    level = torch.tensor([[10, 3]])
    after = renoise(s, x, level, torch.tensor([[10, 9]]), torch.ones(1, 2, 3))
    grad, = torch.autograd.grad(after.sum(), x)
    assert torch.equal(after[:, 0], x[:, 0]) and torch.isfinite(grad).all()
