"""The sampler's law where everything is known: AR(1) with exact denoisers, so that every error is the sampler's."""

from __future__ import annotations

import itertools

import pytest
import torch

from dforce.core.elbo import elbo
from dforce.core.matrix import autoregressive, pyramid
from dforce.core.noise import Noise
from dforce.core.rollout import rollout
from dforce.core.sample import generate
from dforce.core.schedule import Schedule, cosine, flow, linear, sigmoid
from tests.gaussian_bed import RHO, Causal, NonCausal, ar1, covariance

S = linear(1000)
INNOVATION = (1 - RHO**2) ** 0.5


def rolled(steps, *, spacing="log_snr", order=2, eta=0.0, schedule=S, chunk=10, tokens=40, batch=1500, seed=0):
    """[B, tokens] of a rollout, token after token."""
    denoiser = Causal(schedule)
    matrix = autoregressive(schedule.grid(steps, spacing), chunk)
    run = rollout(denoiser, schedule, matrix, denoiser.init_state(batch), (1,), batch=batch, order=order, eta=eta,
                  noise=Noise(seed))
    return torch.cat([x for x, _ in itertools.islice(run, tokens // chunk)], 1)[..., 0]


@pytest.mark.parametrize("steps, spacing, order, eta0, eta1", [
    (5, "index", 1, 0.48, 0.46), (10, "index", 1, 0.71, 0.65),
    (5, "log_snr", 1, 0.51, 0.39), (10, "log_snr", 1, 0.76, 0.64),
    (5, "log_snr", 2, 0.77, 0.64), (10, "log_snr", 2, 1.02, 1.01),
    *(pytest.param(20, *row, marks=pytest.mark.slow)
      for row in [("index", 1, 0.84, 0.77), ("log_snr", 1, 0.87, 0.79), ("log_snr", 2, 1.00, 1.04)]),
])
@pytest.mark.quick(2)
def test_first_order_shrinks_a_rollout_and_second_order_does_not(steps, spacing, order, eta0, eta1):
    """Stationary std, wanted 1: the sampler alone loses half of it at 5 to 10 first-order steps."""
    for eta, wanted in ((0.0, eta0), (1.0, eta1)):
        x = rolled(steps, spacing=spacing, order=order, eta=eta, chunk=2)
        assert abs(float(x[:, -20:].std()) - wanted) < 0.04, eta


@pytest.mark.parametrize("schedule, eta", [
    (cosine(1000), 0.0), (sigmoid(1000), 1.0), (flow(1000), 0.0),  # each schedule and each eta; all pairs are slow
    *(pytest.param(schedule, eta, marks=pytest.mark.slow)
      for schedule, eta in [(cosine(1000), 1.0), (sigmoid(1000), 0.0), (flow(1000), 1.0)]),
])
def test_second_order_holds_on_other_schedules(schedule, eta):
    assert abs(float(rolled(10, schedule=schedule, eta=eta)[:, -20:].std()) - 1) < 0.06


@pytest.mark.parametrize("chunk", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 10))])
def test_the_chunk_of_an_autoregressive_rollout_does_not_matter(chunk):
    """Lag-1 correlation within .01, innovation within 3%, std within 5%, over the seams of chunks too."""
    x = rolled(20, chunk=chunk, tokens=60, batch=2000)[:, 20:]
    before, after = x[:, :-1].flatten(), x[:, 1:].flatten()
    lag = float((before * after).mean() / (before * before).mean())
    assert abs(lag - RHO) < 0.01
    assert abs(float((after - RHO * before).std()) / INNOVATION - 1) < 0.03
    assert abs(float(x.std()) - 1) < 0.05
    seams = range(chunk, x.shape[1] - 1, chunk)  # chunks of a size that divides the 20 tokens that are dropped
    jump = torch.cat([x[:, t] - RHO * x[:, t - 1] for t in seams]).std()
    assert abs(float(jump) / INNOVATION - 1) < 0.05


# ------------------------------------------------------------------------------------------- delay / steps decides

def whitened(batch, time, seed=0):
    z = torch.randn(batch, time, generator=torch.Generator().manual_seed(seed)).double()
    z = z - z.mean(0)
    return (z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T).float()[..., None]


def joint(denoiser, steps, delay, time=16):
    """(std at token 7, std at the last, step noise, largest covariance error). The exact denoisers are linear and
    eta = 0, so a start with sample covariance 1 shows the law exactly."""
    x = generate(denoiser, S, pyramid(S.grid(steps), time, delay), whitened(100, time))[..., 0].double()
    cov = torch.cov(x.T)
    noise = cov.diagonal()[1:] + RHO**2 * cov.diagonal()[:-1] - 2 * RHO * cov.diagonal(1)
    error = (cov - covariance(time)).abs().max()
    return [float(v) for v in (cov[7, 7].sqrt(), cov[-1, -1].sqrt(), noise.mean().sqrt(), error)]


@pytest.mark.parametrize("steps, delay, wanted", [
    (20, 0, (0.84, 0.83, 0.646, 0.47)), (20, 1, (0.86, 0.85, 0.546, 0.36)), (60, 3, (0.85, 0.84, 0.543, 0.37)),
    (20, 5, (0.99, 0.97, 0.449, 0.08)), (20, 10, (1.03, 1.01, 0.444, 0.06)), (60, 30, (1.01, 1.00, 0.438, 0.03)),
])
def test_a_causal_denoiser_needs_a_delay(steps, delay, wanted):
    """Early tokens never hear of later noisy ones: delay / steps decides, and more steps do not help."""
    got = joint(Causal(S), steps, delay)
    tolerances = (0.03, 0.03, 0.02, 0.05)
    assert all(abs(a - b) < limit for a, b, limit in zip(got, wanted, tolerances, strict=True)), got
    if delay >= steps / 4:
        assert got[3] < 0.1


@pytest.mark.parametrize("steps, delay", [(20, 0), (20, 1), (20, 5), (20, 10), (60, 3)])
def test_a_non_causal_denoiser_does_not(steps, delay):
    seven, last, noise, error = joint(NonCausal(S, 16), steps, delay)
    assert error < 0.1 and abs(noise - INNOVATION) < 0.02 and abs(seven - 1) < 0.06 and abs(last - 1) < 0.06


# -------------------------------------------------------------------------------------------------------------- ELBO

def even(levels):
    """Variance preserving, log-SNR falling evenly from 10 to -9: only so do all steps shrink with their number. (Under
    linear betas the SNR halves between levels 1 and 2 at any K, which costs a constant number of nats.)"""
    snr = torch.linspace(10, -9, levels, dtype=torch.float64).exp()
    one = torch.ones(1, dtype=torch.float64)
    return Schedule(torch.cat([one, (snr / (1 + snr)).sqrt()]), torch.cat([0 * one, (1 / (1 + snr)).sqrt()]))


def test_the_elbo_lies_below_the_likelihood_and_approaches_it():
    time = 4
    x0 = ar1(1000, time, torch.Generator().manual_seed(1))
    law = torch.distributions.MultivariateNormal(torch.zeros(time).double(), covariance(time))
    bounds = [elbo(NonCausal(even(levels), time), even(levels), x0).bound.sum(1) for levels in (10, 40, 160)]
    gaps = [law.log_prob(x0[..., 0].double()) - bound for bound in bounds]
    means, errors = [float(gap.mean()) for gap in gaps], [float(gap.std()) / 1000**0.5 for gap in gaps]
    assert all(mean > -2 * error for mean, error in zip(means, errors, strict=True)), (means, errors)
    assert all(b < a / 3 for a, b in itertools.pairwise(means)) and means[-1] < 1.2, (means, errors)


def test_the_bed_itself():
    """The exact denoisers against conditioning of the joint Gaussian, written out."""
    time, g = 5, torch.Generator().manual_seed(0)
    level = torch.tensor([[10, 300, 0, 900, 600]])
    x = torch.randn(1, time, 1, generator=g)
    alpha, sigma = S.alpha[level[0]], S.sigma[level[0]].clamp(min=1e-4)
    cov = covariance(time)
    for t in range(time):
        for denoiser, seen in ((Causal(S), t + 1), (NonCausal(S, time), time)):
            a = torch.diag(alpha[:seen])
            gain = cov[t, :seen] @ a @ torch.linalg.inv(a @ cov[:seen, :seen] @ a + torch.diag(sigma[:seen] ** 2))
            wanted = gain @ x[0, :seen, 0].double()
            got = denoiser(x, level, denoiser.init_state(1))[0][0, t, 0]
            assert abs(float(got) - float(wanted)) < 2e-4, (t, seen)
