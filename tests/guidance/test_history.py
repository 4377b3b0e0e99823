"""History guidance: weight 1 is plain, answers are linear in the weight, and a Gaussian is tilted by what is known."""

from __future__ import annotations

import math

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import autoregressive, pyramid
from dforce.core.noise import Noise
from dforce.core.rollout import rollout
from dforce.core.sample import generate
from dforce.core.schedule import linear
from dforce.core.transition import renoise
from dforce.guidance.history import Past, fractional, history_guided, vanilla
from dforce.nets.recurrent import RecurrentNet
from tests.gaussian_bed import RHO, Causal, NonCausal
from tests.stepwise import part

S = linear(1000)
EVENT = (2,)


def net():
    torch.manual_seed(0)
    return Precond(RecurrentNet(EVENT, width=12, token={"a": 1}).double(), S, "v")


def data(batch=3, time=4):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(batch, time, *EVENT, generator=g).double()
    return x, {"token": {"a": torch.randn(batch, time, 1, generator=g).double()}}


def answer(denoiser, *, level=500):
    """x0_hat of the last token after the others were absorbed clean."""
    x, cond = data()
    past, now = ({"token": {"a": cond["token"]["a"][:, part]}} for part in (slice(3), slice(3, None)))
    state = denoiser.absorb(x[:, :3], torch.zeros(3, 3, dtype=torch.long), denoiser.init_state(3, past), past)
    return denoiser(x[:, 3:], torch.full((3, 1), level), state, now)


@pytest.mark.parametrize("pasts", [vanilla(1.0), fractional(1.0, 0.5), (Past(0.4, 0.0), Past(0.6, 0.0))])
def test_weight_one_is_the_denoiser_itself(pasts):
    guided, plain = history_guided(net(), S, pasts), net()
    assert torch.equal(answer(guided)[0], answer(plain)[0])
    assert torch.equal(answer(guided)[1]["past"][0]["z"], answer(plain)[1]["z"])


@pytest.mark.parametrize("kind", [vanilla, lambda weight: fractional(weight, 0.5)])
def test_answers_are_linear_in_the_weight(kind):
    at = {weight: answer(history_guided(net(), S, kind(weight)))[0] for weight in (1.0, 2.0, 3.5)}
    torch.testing.assert_close(at[3.5], at[1.0] + 2.5 * (at[2.0] - at[1.0]))
    assert (at[2.0] - at[1.0]).abs().min() > 1e-6


def test_each_past_is_noised_to_its_level_and_answers_alone():
    """The sum written out, with states of the plain denoiser."""
    x, cond = data()
    plain, noise = net(), Noise(7)
    level = torch.tensor([[0, 100, 900]]).expand(3, 3)
    given = {"token": {"a": cond["token"]["a"][:, :3]}}
    now = {"token": {"a": cond["token"]["a"][:, 3:]}}
    std = 0.5
    drawn = noise(0, torch.arange(3), x[:, :3], salt=11)
    total = 0
    for weight, least in ((1.0, 0), (1.0, S.nearest(std)), (-1.0, 1000)):
        shown = level.clamp(min=least)
        state = plain.absorb(renoise(S, x[:, :3], level, shown, drawn), shown, plain.init_state(3), given)
        total = total + weight * plain(x[:, 3:], torch.full((3, 1), 500), state, now)[0]
    guided = history_guided(plain, S, fractional(2.0, std), noise=noise)
    state = guided.absorb(x[:, :3], level, guided.init_state(3), given)
    torch.testing.assert_close(guided(x[:, 3:], torch.full((3, 1), 500), state, now)[0], total)


def test_absorbing_in_parts_draws_the_same_noise():
    x, cond = data()
    guided = history_guided(net(), S, vanilla(2.0))
    level = torch.zeros(3, 4, dtype=torch.long)
    whole, parts = guided.absorb(x, level, guided.init_state(3), cond), guided.init_state(3)
    for t in range(4):
        now = slice(t, t + 1)
        parts = guided.absorb(x[:, now], level[:, now], parts, part(cond, now))
    for one, other in zip(whole["past"], parts["past"], strict=True):
        torch.testing.assert_close(one["z"], other["z"])
    assert torch.equal(whole["token"], torch.full((3,), 4))


def tail(guided, h, x):
    """A token sampled after the clean token h, from x at pure noise: exact denoiser, the ordinary sampler."""
    state = guided.absorb(torch.full_like(x, h), torch.zeros(len(x), 1, dtype=torch.long), guided.init_state(len(x)))
    return generate(guided, S, autoregressive(S.grid(150), 1), x, state=state)


def closed_form(terms, x):
    """Where the probability flow of a product of Gaussians N(m_i, s_i^2)^{w_i} N(0, 1)^{...} brings x.

    With v_i = 1 - alpha^2 (1 - s_i^2), the flow dx/dt = -beta/2 sum_i w_i (x - (x - alpha m_i) / v_i) has the solution
    x(1) = prod_i (v_i(1) / v_i(K))^{w_i / 2} x(K) + the integral of its inhomogeneous part over alpha, done by sums.
    """
    alpha = torch.linspace(float(S.alpha[-1]), 1, 200_001, dtype=torch.float64)
    decay, drive = torch.ones_like(alpha), torch.zeros_like(alpha)
    for w, m, s in terms:
        v = 1 - alpha**2 * (1 - s**2)
        decay, drive = decay * v ** (w / 2), drive + w * m / v
    inner = torch.trapezoid(drive / decay, alpha)
    return decay[-1] / decay[0] * x + decay[-1] * inner


@pytest.mark.parametrize("weight", [1.0, 2.0])
def test_vanilla_guidance_sharpens_a_gaussian_by_the_weight(weight):
    """p(x | h)^w p(x)^(1 - w) as its flow has it: after h the token is N(rho h, 1 - rho^2), alone N(0, 1)."""
    h, x = 0.8, torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1)
    got = tail(history_guided(Causal(S), S, vanilla(weight)), h, x)
    spread = math.sqrt(1 - RHO**2)
    wanted = closed_form([(weight, RHO * h, spread)], x.double())
    torch.testing.assert_close(got.double(), wanted, rtol=0.02, atol=0.02)
    slope = float(got[2] - got[0]) / 3
    assert slope == pytest.approx(spread**weight, rel=0.04)  # the standard deviation of the samples


def test_fractional_guidance_adds_the_coarse_past():
    h, std, weight = 0.8, 0.7, 3.0
    x = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1)
    got = tail(history_guided(Causal(S), S, fractional(weight, std)), h, x)
    level = S.nearest(std)
    alpha, sigma = float(S.alpha[level]), float(S.sigma[level])
    seen = alpha * h + sigma * Noise()(0, torch.zeros(1, dtype=torch.long), x, salt=11).double()  # of each row
    mean, left = RHO * alpha * seen, 1 - (RHO * alpha) ** 2  # N(mean, left) after the noised token
    for row in range(3):
        terms = [(1.0, RHO * h, math.sqrt(1 - RHO**2)), (weight - 1, float(mean[row]), math.sqrt(left))]
        assert float(got[row]) == pytest.approx(float(closed_form(terms, x[row].double())), abs=0.04)


def test_wavefront_is_double_loop():
    guided = history_guided(net(), S, vanilla(2.0))
    x, cond = data()
    state = guided.absorb(x, torch.zeros(3, 4, dtype=torch.long), guided.init_state(3), cond)
    matrix = pyramid(S.grid(5), 4, 2)
    wave, loop = (generate(guided, S, matrix, x, state=state, cond=cond, path=p) for p in ("wavefront", "double_loop"))
    torch.testing.assert_close(wave, loop)


def test_it_rolls_out():
    guided = history_guided(Causal(S), S, vanilla(1.5))
    frames = rollout(guided, S, autoregressive(S.grid(5), 1), guided.init_state(2), (1,), batch=2)
    chunks = [next(frames)[0] for _ in range(3)]
    assert torch.cat(chunks, 1).shape == (2, 3, 1) and torch.cat(chunks).isfinite().all()


@pytest.mark.parametrize("make, message", [
    (lambda: history_guided(NonCausal(S, 4), S, vanilla(2.0)), "causal"),
    (lambda: history_guided(Causal(S), S, [Past(2.0, 0.0)]), "sum to 2"),
    (lambda: history_guided(Causal(S), S, fractional(2.0, -1.0)), "negative"),
])
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
