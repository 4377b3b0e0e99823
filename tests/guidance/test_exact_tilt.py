"""The exact tilt on a process whose posterior is known: means and covariance come out, also of goals close together."""

from __future__ import annotations

import pytest
import torch

from dforce.core.matrix import pyramid
from dforce.core.sample import generate
from dforce.core.schedule import linear
from dforce.guidance.monte_carlo import _Draws, exact_tilt, monte_carlo
from tests.gaussian_bed import Causal, NonCausal, covariance
from tests.guidance.test_monte_carlo import whitened

RHO, TIME, STD, S = 0.8, 6, 0.2, linear(1000)


class Goals:
    """log N(goal; x at the tokens, STD^2)."""

    std = STD

    def __init__(self, tokens, goal):
        self.tokens, self.goal = tokens, torch.tensor(goal)

    def features(self, x0):
        return x0[:, self.tokens, 0]

    def __call__(self, x0):
        return -(self.features(x0) - self.goal).square().sum(1) / (2 * STD**2)


def posterior(energy):
    """Mean [T] and covariance [T, T] of the process given the goals."""
    cov, at = covariance(TIME, RHO), energy.tokens
    gain = cov[:, at] @ torch.linalg.inv(cov[at][:, at] + STD**2 * torch.eye(len(at)).double())
    return gain @ energy.goal.double(), cov - gain @ cov[at]


def errors(denoiser, energy):
    x = generate(denoiser, S, pyramid(S.grid(20), TIME, 5), whitened(100, TIME))[..., 0].double()
    mean, cov = posterior(energy)
    return float((x.mean(0) - mean).abs().max()), float((torch.cov(x.T) - cov).abs().max())


@pytest.mark.parametrize("energy", [pytest.param(Goals([5], [-1.5]), id="one goal", marks=pytest.mark.slow),
                                    pytest.param(Goals([3, 5], [1.0, -1.5]), id="two near goals")])
@pytest.mark.slow
def test_it_gives_the_posterior_where_the_heuristic_does_not(energy):
    mean, cov = errors(exact_tilt(Causal(S, RHO), S, energy), energy)
    assert mean < 0.1 and cov < 0.1
    assert errors(monte_carlo(Causal(S, RHO), S, energy, 4), energy)[0] > 5 * mean


def test_features_are_matched_with_their_full_covariance():
    """The gradient is that of log N(goal; mean, std^2 + covariance), by autograd."""
    energy, g = Goals([7, 9], [1.0, -1.5]), torch.Generator().manual_seed(0)
    value = torch.randn(8, 3, 2, generator=g, dtype=torch.float64) @ torch.tensor([[1.0, 0.9], [0.0, 0.3]]).double()
    value.requires_grad_()
    cov = torch.stack([torch.cov(value[:, b].T) for b in range(3)]) + STD**2 * torch.eye(2).double()
    law = torch.distributions.MultivariateNormal(value.mean(0), cov)
    wanted, = torch.autograd.grad(law.log_prob(energy.goal.double()).sum(), value)
    guide = exact_tilt(Causal(S, RHO), S, energy, 8)
    identity = torch.eye(2).double().view(2, 1, 1, 2, 1).expand(2, 8, 3, 2, 1)  # token f is feature f
    found = []
    for j in range(8):  # the part of draw j alone
        gradient = torch.zeros(2, 8, 3, 2, 1).double()
        gradient[:, j] = identity[:, j]
        found.append(guide._combine(_Draws(value.detach(), gradient, torch.ones(8, 3, 2, dtype=torch.bool)))[..., 0])
    torch.testing.assert_close(torch.stack(found), wanted)


def test_settings_follow_denoiser_and_energy():
    causal = exact_tilt(Causal(S), S, Goals([9], [1.0]))
    whole = exact_tilt(NonCausal(S, 4), S, lambda x0: x0.sum((1, 2)))
    assert (causal.branch, causal.futures, causal.reduce, causal.draws) == ("posterior", "sequential", "gaussian", 16)
    assert (whole.branch, whole.futures, whole.reduce) == ("posterior", "joint", "logmeanexp")
    with pytest.raises(ValueError, match="draws must be >= 2"):
        exact_tilt(Causal(S), S, Goals([9], [1.0]), 1)
