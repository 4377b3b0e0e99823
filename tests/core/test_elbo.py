"""The evidence lower bound: its terms in closed form on AR(1) with exact denoisers, and how the work may be cut up."""

from __future__ import annotations

import itertools
import math
import sys

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.elbo import elbo, held_out_bound
from dforce.core.loss import corrupt
from dforce.core.noise import Noise, members_of
from dforce.core.schedule import cosine, flow, linear
from dforce.data import Batch
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet
from tests.gaussian_bed import RHO, Causal, NonCausal, ar1, covariance
from tests.laws.test_laws import even

module = sys.modules["dforce.core.elbo"]  # `dforce.elbo` itself is the function

TIME = 5
X = ar1(400, TIME, torch.Generator().manual_seed(0))
LEVELS = (50, 200, 1000)
INNOVATION = 1 - RHO**2  # variance


def log_likelihood(x0):
    """log p(x_t | x_<t) of the process, [B, T]."""
    x = x0[..., 0].double()
    mean = torch.cat([torch.zeros_like(x[:, :1]), RHO * x[:, :-1]], 1)
    std = torch.tensor([1.0] + [math.sqrt(INNOVATION)] * (x.shape[1] - 1), dtype=torch.float64)
    return torch.distributions.Normal(mean, std).log_prob(x)


def standard_error(values):
    return float(values.mean(1).std()) / len(values) ** 0.5


# ------------------------------------------------------------------------------------------------- the law of the bound

@pytest.mark.slow
def test_below_the_likelihood_and_approaching_it():
    """Stated: within 1, .3 and .1 nats a token of log p(x_t | x_<t) at K = 50, 200, 1000 levels, even in log-SNR."""
    gaps = []
    for levels in LEVELS:
        schedule = even(levels)
        gap = log_likelihood(X) - elbo(Causal(schedule), schedule, X).bound
        assert (gap.mean(0) > -3 * gap.std(0) / len(X) ** 0.5).all(), (levels, gap.mean(0))
        gaps.append(float(gap.mean()))
    assert gaps[0] < 1 and gaps[1] < 0.3 and gaps[2] < 0.1, gaps
    assert all(after < before / 2.5 for before, after in itertools.pairwise(gaps)), gaps


@pytest.mark.parametrize("make", [even, linear, cosine], ids=["even", "linear", "cosine"])
@pytest.mark.parametrize("levels", [20, 200])
def test_each_term_has_its_closed_form(make, levels):
    """E KL_k = (SNR_{k-1} - SNR_k) mmse(SNR_k) / 2 (Kingma et al. 2021, eq. 13), mmse(s) = v / (1 + v s), v the
    variance that the past leaves: 1 at token 0, then 1 - rho^2. So the gap is the schedule's and the denoiser's, not
    the estimate's."""
    schedule = make(levels)
    found = elbo(Causal(schedule), schedule, X, samples=2)
    snr = (schedule.alpha[1:] / schedule.sigma[1:]) ** 2
    for variance, tokens in ((1.0, slice(1)), (INNOVATION, slice(1, None))):
        mmse = variance / (1 + variance * snr)
        transitions = float(((snr[:-1] - snr[1:]) * mmse[1:]).sum() / 2)
        reconstruction = float(0.5 * (snr[0].log() - math.log(2 * math.pi) - mmse[0] * snr[0]))
        for wanted, got in ((transitions, found.transitions), (reconstruction, found.reconstruction)):
            assert abs(float(got[:, tokens].mean()) - wanted) < 4 * standard_error(got[:, tokens]), (wanted, got.mean())
    assert torch.equal(found.bound, found.reconstruction - found.transitions - found.prior)
    assert found.bound.shape == X.shape[:2] and found.bound.dtype == torch.float64


def test_the_prior_term():
    """Against torch.distributions, on a schedule that ends early enough for it to count."""
    schedule = linear(1000, end=0.002)
    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    wanted = torch.distributions.kl_divergence(torch.distributions.Normal(alpha * X.double(), sigma),
                                               torch.distributions.Normal(0.0 * X.double(), sigma))[..., 0]
    got = elbo(Causal(schedule), schedule, X, levels=4).prior
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)
    assert float(got.mean()) > 0.1
    straight = flow(100)  # pure noise at the end: nothing of x0 is left
    assert float(elbo(Causal(straight), straight, X, levels=4).prior.abs().max()) == 0


def test_without_causality_it_bounds_the_whole_sequence():
    """All tokens at one level: E KL_k = (SNR_{k-1} - SNR_k) tr(C (1 + SNR_k C)^-1) / 2."""
    schedule = even(200)
    found = elbo(NonCausal(schedule, TIME), schedule, X)
    snr = (schedule.alpha[1:] / schedule.sigma[1:]) ** 2
    spectrum = torch.linalg.eigvalsh(covariance(TIME))
    mmse = (spectrum / (1 + snr[:, None] * spectrum)).sum(1)
    wanted = float(((snr[:-1] - snr[1:]) * mmse[1:]).sum() / 2) / TIME
    assert abs(float(found.transitions.mean()) - wanted) < 4 * standard_error(found.transitions)
    gap = (log_likelihood(X) - found.bound).mean(1)
    assert 0 < float(gap.mean()) < 0.4


def test_an_untrained_network_is_worse_and_a_wrong_process_too():
    schedule = even(200)
    right, wrong = (float(elbo(Causal(schedule, rho), schedule, X, levels=40).bound.mean()) for rho in (RHO, 0.5))
    torch.manual_seed(0)
    untrained = float(elbo(Precond(RecurrentNet((1,), width=8), schedule, "v"), schedule, X, levels=40).bound.mean())
    assert right > wrong + 0.3 and wrong > untrained


# --------------------------------------------------------------------------------------------------- the estimator

@pytest.mark.parametrize("levels", [1, 6, 30, 99])
@pytest.mark.quick(2)
def test_a_subset_of_levels_is_unbiased(levels):
    schedule = linear(100)
    whole, part = (elbo(Causal(schedule), schedule, X, levels=n, samples=8) for n in (None, levels))
    gap = part.bound - whole.bound
    assert abs(float(gap.mean())) <= 4 * standard_error(gap), (float(gap.mean()), standard_error(gap))
    assert torch.equal(part.bound, whole.bound) == (levels == 99)  # then every stratum is one level


def test_strata_cover_every_transition_once():
    for levels in (None, 1, 7, 50):
        terms = module._terms(linear(100), levels, 1, X.device)
        covered = torch.cat([torch.arange(low, low + size) for low, size in zip(terms.low, terms.size, strict=True)])
        assert torch.equal(covered.sort().values, torch.arange(1, 101))


def nets():
    torch.manual_seed(0)
    shapes = {"static": {"start": 2}, "token": {"push": 3}}
    return {"recurrent": RecurrentNet((2,), width=8, **shapes),
            "transformer": TransformerNet((2,), width=8, depth=2, heads=2, context=4, **shapes)}


def conditioned(batch=3):
    g = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    cond = {"static": {"start": draw(batch, 2)}, "token": {"push": draw(batch, TIME, 3)}}
    return draw(batch, TIME, 2), cond


@pytest.mark.parametrize("name", ["recurrent", "transformer"])
def test_equal_to_scoring_tokens_one_at_a_time(name):
    """The plain double loop: the clean past and the noisy token as one sequence, level by level; all draws the same."""
    schedule, (x0, cond) = linear(6), conditioned()
    denoiser, noise = Precond(nets()[name], schedule, "v").eval(), Noise(7)
    found = elbo(denoiser, schedule, x0, cond=cond, noise=noise)
    low = module._terms(schedule, None, 1, x0.device).low
    for t in range(TIME):
        past, sums = slice(t + 1), torch.zeros(len(x0), 2, dtype=torch.float64)
        for row, k in enumerate(low.tolist()):
            level = torch.zeros(len(x0), t + 1, dtype=torch.long)
            level[:, t] = k
            x = corrupt(schedule, x0[:, past], level, noise(row, torch.arange(t + 1), x0[:, past]))
            so_far = {**cond, "token": {"push": cond["token"]["push"][:, past]}}
            with torch.no_grad():
                hat = denoiser(x, level, denoiser.init_state(len(x0), so_far), so_far)[0][:, t].double()
            error = (hat - x0[:, t].double()).square().sum(1)
            snr = (schedule.alpha[1:] / schedule.sigma[1:]) ** 2
            if k == 1:
                sums[:, 1] += x0.shape[2] / 2 * torch.log(snr[0] / (2 * math.pi)) - snr[0] * error / 2
            else:
                sums[:, 0] += (snr[k - 2] - snr[k - 1]) * error / 2
        torch.testing.assert_close(found.transitions[:, t], sums[:, 0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.reconstruction[:, t], sums[:, 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["recurrent", "transformer"])
def test_how_the_work_is_cut_does_not_matter(name, monkeypatch):
    schedule, (x0, cond) = linear(30), conditioned()
    denoiser = Precond(nets()[name], schedule, "v").eval()
    whole = elbo(denoiser, schedule, x0, cond=cond, levels=9, samples=2)
    for floats in (1, 3000):
        monkeypatch.setattr(module, "FLOATS", floats)
        torch.testing.assert_close(elbo(denoiser, schedule, x0, cond=cond, levels=9, samples=2).bound, whole.bound,
                                   rtol=1e-5, atol=1e-5)
    first = {kind: {key: value[:2] for key, value in entries.items()} for kind, entries in cond.items()}
    alone = elbo(denoiser, schedule, x0[:2], cond=first, levels=9, samples=2)
    torch.testing.assert_close(alone.bound, whole.bound[:2], rtol=1e-5, atol=1e-5)


def test_a_state_carries_the_past():
    """The bound of later tokens, given the state after the earlier ones, is their bound in the whole sequence."""
    schedule = linear(100)
    denoiser, zeros = Causal(schedule), torch.zeros(len(X), 2, dtype=torch.long)
    state = denoiser.absorb(X[:, :2], zeros, denoiser.init_state(len(X)))
    later, whole = elbo(denoiser, schedule, X[:, 2:], state=state, samples=4), elbo(denoiser, schedule, X, samples=4)
    gap = later.bound - whole.bound[:, 2:]  # other counters, so other noise
    assert abs(float(gap.mean())) < 4 * standard_error(gap)


def test_masks():
    schedule, (x0, cond) = linear(20), conditioned()
    denoiser = Precond(nets()["recurrent"], schedule, "v").eval()
    whole = elbo(denoiser, schedule, x0, cond=cond)
    mask = torch.arange(TIME).expand(3, -1) < torch.tensor([5, 3, 0])[:, None]
    torch.testing.assert_close(elbo(denoiser, schedule, x0, cond=cond, mask=mask).bound, whole.bound.where(mask, 0.0))
    halves = [torch.arange(2).expand(x0.shape) == i for i in range(2)]
    split = [elbo(denoiser, schedule, x0, cond=cond, mask=half).bound for half in halves]
    torch.testing.assert_close(split[0] + split[1], whole.bound)


def test_the_bound_at_validation():
    schedule = linear(200)
    denoiser, mask = Causal(schedule), torch.arange(TIME).expand(len(X), -1) < 3
    batch = Batch(X, mask, {}, torch.ones(len(X), dtype=torch.bool))
    wanted = elbo(denoiser, schedule, X[:50], levels=8).bound[:, :3].mean()
    got = held_out_bound(denoiser, schedule, batch, rows=50)
    torch.testing.assert_close(got, wanted)
    assert float(held_out_bound(denoiser, schedule, batch, rows=50)) == float(got)
    assert got.shape == () and abs(float(got - log_likelihood(X)[:, :3].mean())) < 2


def test_refusals():
    schedule = linear(10)
    with pytest.raises(ValueError, match=r"levels must lie in 1..9 .* got 10"):
        elbo(Causal(schedule), schedule, X, levels=10)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        elbo(Causal(schedule), schedule, X, samples=0)


def test_noise_that_wraps_another_will_do_and_a_part_has_the_bound_of_the_whole():
    schedule, rows = linear(50), torch.tensor([3, 0, 5])
    whole = elbo(Causal(schedule), schedule, X[:8], levels=6, noise=Noise(2)).bound
    part = elbo(Causal(schedule), schedule, X[rows], levels=6, noise=members_of(Noise(2), rows, 8)).bound
    torch.testing.assert_close(part, whole[rows])
