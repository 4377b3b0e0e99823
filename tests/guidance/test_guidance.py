"""Guidance: a linear energy tilts by a known amount; wrappers compose; what they cannot do is on record."""

from __future__ import annotations

import pytest
import torch

from dforce.core.denoiser import Denoiser, Precond
from dforce.core.matrix import full_sequence, pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import cosine, flow, linear
from dforce.guidance.energy import guided, tilt
from dforce.guidance.inpaint import inpaint
from dforce.guidance.monte_carlo import monte_carlo
from dforce.guidance.universal import backward_guided
from dforce.guidance.wrapper import classifier_free, clipped
from dforce.nets.recurrent import RecurrentNet
from tests.align_bed import Gaussian
from tests.gaussian_bed import Causal, NonCausal, covariance

S, T = linear(1000), 8


def whitened(batch, time, seed=0):
    """Start noise whose sample mean is 0 and sample covariance 1 exactly: the exact denoisers are linear, so their
    samples then show the law with next to no sampling error."""
    z = torch.randn(batch, time, generator=torch.Generator().manual_seed(seed)).double()
    z = z - z.mean(0)
    return (z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T).view(time, time))).T).float()[..., None]


def moments(x):
    x = x[..., 0].double()
    return x.mean(0), torch.cov(x.T)


class Linear:
    """energy = weights . x, which moves the mean of N(0, C) by C weights and leaves the covariance."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, x0):
        return (x0[..., 0] * self.weights.to(x0)).sum(1)


class Terminal:
    """log N(goal; x_T, std^2)."""

    def __init__(self, goal=2.0, std=0.3):
        self.goal, self.std = torch.tensor([goal]), std

    def features(self, x0):
        return x0[:, -1]

    def __call__(self, x0):
        return -(x0[:, -1, 0] - self.goal[0]).square() / (2 * self.std**2)


# ------------------------------------------------------------------------------------------------------- linear law

@pytest.mark.parametrize("rho", [0.0, 0.9])
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_a_linear_energy_moves_the_mean_by_the_covariance(rho, scale):
    weights = torch.linspace(-0.3, 1.0, T)
    cov = covariance(T, rho)
    matrix = pyramid(S.grid(40), T, 20)
    start = whitened(200, T)
    for denoiser, rows in ((Causal(S, rho), matrix), (NonCausal(S, T, rho), full_sequence(S.grid(40), T))):
        mean, spread = moments(generate(guided(denoiser, S, Linear(weights), scale), S, rows, start))
        torch.testing.assert_close(mean, scale * cov @ weights.double(), rtol=0, atol=0.06)
        torch.testing.assert_close(spread, cov, rtol=0, atol=0.06)


WAYS = [("tree", "joint"), ("tree", "sequential"), ("posterior", "sequential")]


# Quick: two and five draws each with every way, and both with each reduction; one draw is plain guidance bit for bit.
@pytest.mark.parametrize("draws, branch, futures, reduce", [
    pytest.param(draws, *way, reduce, marks=[pytest.mark.slow] * (draws == 1 or (draws + i + j) % 2))
    for draws in (1, 2, 5) for i, way in enumerate(WAYS) for j, reduce in enumerate(("mean", "logmeanexp"))])
@pytest.mark.quick(2)
def test_a_linear_energy_tilts_alike_for_every_draw_and_branch(draws, branch, futures, reduce):
    weights = torch.zeros(T)
    weights[-1] = 1.0
    guide = monte_carlo(Causal(S), S, Linear(weights), draws, branch=branch, futures=futures, reduce=reduce,
                        lookahead=4)
    mean, spread = moments(generate(guide, S, pyramid(S.grid(10), T, 5), whitened(60, T)))
    torch.testing.assert_close(mean, covariance(T)[:, -1], rtol=0, atol=0.05)
    torch.testing.assert_close(spread, covariance(T), rtol=0, atol=0.1)


@pytest.mark.slow
def test_the_plug_in_fails_as_known():
    """A goal at 2 (std .3) for the last of 16 tokens drags the early ones to 4: the mean is wrong by more than 3."""
    time, goal, std = 16, 2.0, 0.3
    cov = covariance(time)
    gain = cov[:, -1] / (1 + std**2)
    for delay in (5, 10):
        guide = guided(Causal(S), S, Terminal(goal, std))
        mean, _ = moments(generate(guide, S, pyramid(S.grid(20), time, delay), whitened(200, time)))
        error = (mean - gain * goal).abs()
        assert error.max() > 3 and mean[0] > 3.5
        assert error[-1] < 0.3               # at the token itself it looks right, which is why nobody noticed


# ------------------------------------------------------------------------------------------------------ the gradient

def test_guidance_is_the_gradient_of_the_energy_at_x0_hat():
    """Finite differences; the shift is sigma^2 / alpha times the gradient."""
    torch.manual_seed(0)
    denoiser = Precond(RecurrentNet((2,), width=8).double(), S, "v")
    x, level = torch.randn(1, 3, 2).double(), torch.tensor([[300, 500, 700]])

    def energy(x0):
        return torch.sin(x0).sum((1, 2)) - x0[:, -1].square().sum(1)

    state = denoiser.init_state(1)
    plain, _ = denoiser(x, level, state)
    guide = guided(denoiser, S, energy, 0.7)
    got, _ = guide(x, level, guide.init_state(1))
    for t in range(3):
        for e in range(2):
            nudge = torch.zeros_like(x)
            nudge[0, t, e] = 1e-5
            with torch.no_grad():
                up, down = (energy(denoiser(x + d, level, state)[0]) for d in (nudge, -nudge))
            k = level[0, t]
            shift = 0.7 * float(up - down) / 2e-5 * float(S.sigma[k] ** 2 / S.alpha[k])
            assert float((got - plain).detach()[0, t, e]) == pytest.approx(shift, rel=1e-4, abs=1e-8)


def test_tilt_leaves_finished_tokens_and_the_pure_noise_of_a_flow():
    s = flow(10)
    x = torch.randn(1, 3, 2)
    got = tilt(s, x, x, torch.tensor([[0, 5, 10]]), torch.ones(1, 3, 2))
    assert torch.equal(got[:, [0, 2]], x[:, [0, 2]])
    torch.testing.assert_close(got[:, 1], x[:, 1] + 0.5)


def test_scale_zero_and_a_flat_energy_change_nothing():
    denoiser = Causal(S)
    x = whitened(20, T)
    plain = generate(denoiser, S, pyramid(S.grid(10), T, 5), x, path="double_loop")
    for guide in (guided(denoiser, S, Terminal(), 0.0), guided(denoiser, S, lambda x0: 0.0 * x0.sum((1, 2)))):
        torch.testing.assert_close(generate(guide, S, pyramid(S.grid(10), T, 5), x, path="double_loop"), plain)


def test_absorbing_under_guidance_is_the_double_loop():
    """Energies judge whole sequences: the finished tokens of a prefix still count."""
    torch.manual_seed(0)
    denoiser = Precond(RecurrentNet((2,), width=8, static={"s": 1}).double(), cosine(50))

    def energy(x0):
        assert x0.shape[1] == 6
        return -(x0 - 0.3).square().sum((1, 2)) - (x0[:, 0] - x0[:, -1]).square().sum(1)

    x, cond = torch.randn(3, 6, 2).double(), {"static": {"s": torch.randn(3, 1).double()}}
    matrix = pyramid(cosine(50).grid(5), 6, 3)
    for eta in (0.0, 0.6):
        guide = guided(denoiser, denoiser.schedule, energy, 0.2)
        loop, rows = (generate(guide, denoiser.schedule, matrix, x, cond=cond, path=path, eta=eta)
                      for path in ("double_loop", "auto"))
        torch.testing.assert_close(rows, loop, rtol=1e-9, atol=1e-9)


def test_guidance_leaves_no_graph_unless_asked():
    denoiser = Precond(RecurrentNet((2,), width=8), S, "v")
    x, level = torch.randn(2, 3, 2), torch.full((2, 3), 500)
    guide = guided(denoiser, S, lambda x0: -x0.square().sum((1, 2)))
    with torch.no_grad():
        x0, _ = guide(x, level, guide.init_state(2))
    assert not x0.requires_grad and not x.requires_grad


def test_learning_through_guidance():
    """Gradients of a guided x0_hat in the weights, against finite differences: the guidance term takes part."""
    torch.manual_seed(0)
    denoiser = Precond(RecurrentNet((1,), width=6).double(), S, "v")
    x, level = torch.randn(1, 2, 1).double(), torch.full((1, 2), 400)
    guide = guided(denoiser, S, lambda x0: -x0.square().sum((1, 2)), 3.0, differentiable=True)
    bias = denoiser.net.head[-1].bias

    def value():
        return guide(x, level, guide.init_state(1))[0].square().sum()

    gradient, = torch.autograd.grad(value(), bias)
    with torch.no_grad():
        bias += 1e-5
    up = float(value().detach())
    with torch.no_grad():
        bias -= 2e-5
    assert float(gradient) == pytest.approx((up - float(value().detach())) / 2e-5, rel=1e-5)
    given = x.clone().requires_grad_()
    through, = torch.autograd.grad(guide(given, level, guide.init_state(1))[0].sum(), given)
    assert torch.isfinite(through).all() and through.any()


@pytest.mark.parametrize("make", [guided, backward_guided, lambda *how: monte_carlo(*how, 3, noise=Noise(1))])
def test_an_energy_may_write_into_what_it_is_given(make):
    def energy(write):
        def value(x0):
            answer = 0.1 * x0.flatten(1).sum(1)
            if write:
                x0.detach().fill_(-1)
            return answer
        return value

    schedule = cosine(50)
    model = Gaussian(schedule, 0.3, 0.5)
    x, level = torch.randn(2, 3, 1), torch.full((2, 3), 20)
    ends = []
    for write in (False, True):
        how = (model, energy(write)) if make is backward_guided else (model, schedule, energy(write))
        denoiser = make(*how)
        ends.append(denoiser(x, level, denoiser.init_state(2))[0].detach())
    assert torch.equal(*ends)


def test_an_energy_gives_one_number_a_sequence():
    guide = guided(Causal(S), S, lambda x0: x0.sum(2))
    with pytest.raises(ValueError, match=r"sequences \[2, 3, 1\] to one number each, \[2\], got \[2, 3\]"):
        guide(torch.zeros(2, 3, 1), torch.full((2, 3), 5), guide.init_state(2))


# -------------------------------------------------------------------------------------------------- classifier-free

def conditional():
    torch.manual_seed(0)
    denoiser = Precond(RecurrentNet((2,), width=8, static={"s": 1}, token={"a": 2}).double(), S, "v")
    cond = {"static": {"s": torch.ones(3, 1).double()}, "token": {"a": torch.randn(3, 6, 2).double()}}
    null = {"static": {"s": torch.zeros(1, 1).double()}, "token": {"a": torch.zeros(1, 1, 2).double()}}
    full = {"static": {"s": torch.zeros(3, 1).double()}, "token": {"a": torch.zeros(3, 6, 2).double()}}
    return denoiser, cond, null, full


def test_classifier_free_at_scale_one_and_zero_and_in_between():
    denoiser, cond, null, full = conditional()
    x, level = torch.randn(3, 6, 2).double(), torch.randint(0, 1001, (3, 6))
    with_cond, _ = denoiser(x, level, denoiser.init_state(3, cond), cond)
    without, _ = denoiser(x, level, denoiser.init_state(3, full), full)
    for scale, wanted in ((1.0, with_cond), (0.0, without), (3.0, without + 3 * (with_cond - without))):
        guide = classifier_free(denoiser, scale, null)
        torch.testing.assert_close(guide(x, level, guide.init_state(3, cond), cond)[0], wanted)


class ByHand(Denoiser):
    """Scale 2 with a null conditioning of full size: whole sequences only."""

    def __init__(self, denoiser, full):
        self.denoiser, self.full = denoiser, full

    def init_state(self, batch, cond):
        return self.denoiser.init_state(batch, cond), self.denoiser.init_state(batch, self.full)

    def __call__(self, x, level, state, cond):
        return 2 * self.denoiser(x, level, state[0], cond)[0] - self.denoiser(x, level, state[1], self.full)[0], state


@pytest.mark.parametrize("path", ["double_loop", "rows", "wavefront"])
def test_classifier_free_on_every_path(path):
    """The null conditioning goes along with windows of tokens, unrolled cells and forks."""
    denoiser, cond, null, full = conditional()
    x, matrix = torch.randn(3, 6, 2).double(), pyramid(S.grid(5), 6, 2)
    loop = generate(ByHand(denoiser, full), S, matrix, x, cond=cond, path="double_loop")
    torch.testing.assert_close(generate(classifier_free(denoiser, 2.0, null), S, matrix, x, cond=cond, path=path), loop)


@pytest.mark.slow
def test_classifier_free_under_guidance_and_its_draws():
    denoiser, cond, null, _ = conditional()
    guide = monte_carlo(classifier_free(denoiser, 2.0, null), S, lambda x0: -x0.square().sum((1, 2)), 3, lookahead=2)
    matrix, x = pyramid(S.grid(4), 6, 2), torch.randn(3, 6, 2).double()
    out = generate(guide, S, matrix, x, cond=cond, path="double_loop")
    torch.testing.assert_close(generate(guide, S, matrix, x, cond=cond, path="rows"), out, rtol=1e-7, atol=1e-9)


def test_classifier_free_says_when_its_null_does_not_fit():
    denoiser, cond, _, full = conditional()
    with pytest.raises(ValueError, match=r"must be one entry for all tokens, \[1, 1, ...\], got \[3, 6, 2\]"):
        classifier_free(denoiser, 2.0, {"token": full["token"]})
    # A static null for each sequence is welcome (a negative prompt).
    x, level = torch.randn(3, 6, 2).double(), torch.full((3, 6), 500)
    each = {"static": {"s": torch.randn(3, 1).double()}, "token": {"a": torch.zeros(1, 1, 2).double()}}
    guide = classifier_free(denoiser, 0.0, each)
    wanted, _ = denoiser(x, level, denoiser.init_state(3, {"static": each["static"]}), full)
    torch.testing.assert_close(guide(x, level, guide.init_state(3, cond), cond)[0], wanted)


# ------------------------------------------------------------------------------------------------- clipped, inpaint

def test_clipped():
    denoiser = clipped(Causal(S), -0.1, 0.2)
    x = torch.randn(50, T, 1)
    x0, _ = denoiser(x, torch.full((50, T), 100), denoiser.init_state(50))
    assert x0.min() == -0.1 and abs(float(x0.max()) - 0.2) < 1e-6 and denoiser.recurrent
    with pytest.raises(ValueError, match="low must be below high, got 1 and 1"):
        clipped(Causal(S), 1, 1)


def test_inpaint_ends_at_the_known_values_and_bridges_them_too_weakly():
    """AR(1) with both ends known. The ends are met exactly and pull the rest their way, but by half of what the
    conditional law says, at any number of steps: replacement is not conditioning (Ho et al. 2022, section 3.1)."""
    time = 9
    known, mask = torch.zeros(time, 1), torch.zeros(time, 1, dtype=torch.bool)
    known[0], known[-1], mask[0], mask[-1] = 1.5, -1.0, True, True
    cov, start = covariance(time), whitened(100, time)
    wanted = cov[:, [0, -1]] @ torch.linalg.inv(cov[[0, -1]][:, [0, -1]]) @ torch.tensor([1.5, -1.0]).double()
    shares = []
    for show in ("noised", "clean"):
        fill = inpaint(NonCausal(S, time), known, mask, show=show)
        out = generate(fill, S, full_sequence(S.grid(20), time), start)
        assert (out[:, 0] == 1.5).all() and (out[:, -1] == -1.0).all()
        mean, _ = moments(out)
        assert (mean.diff() < 0).all()
        shares.append(float(mean[1] / wanted[1]))
    assert 0.3 < shares[0] < shares[1] < 0.7


def test_inpaint_clean_shows_the_known_values():
    seen = []

    class Spy(NonCausal):
        def __call__(self, x, level, state, cond=None):
            seen.append(x)
            return super().__call__(x, level, state, cond)

    known, mask = torch.full((2, 4, 2), 7.0), torch.zeros(2, 4, 2, dtype=torch.bool)
    mask[:, 1, 0] = True
    x, level = torch.randn(2, 4, 2), torch.full((2, 4), 500)
    for show in ("clean", "noised"):
        fill = inpaint(Spy(S, 4), known, mask, show=show)
        x0, _ = fill(x, level, fill.init_state(2))
        assert (x0[mask] == 7).all()
        assert torch.equal(seen[-1], torch.where(mask, known, x) if show == "clean" else x)


def test_inpaint_under_monte_carlo_knows_its_draws():
    known, mask = torch.randn(3, 4, 1), torch.zeros(3, 4, 1, dtype=torch.bool)
    mask[:, 0] = True
    guide = monte_carlo(inpaint(NonCausal(S, 4), known, mask), S, Terminal(), 4, branch="posterior")
    out = generate(guide, S, full_sequence(S.grid(5), 4), torch.randn(3, 4, 1))
    assert torch.isfinite(out).all() and (out.isclose(known) == mask)[:, 0].all()


def test_inpaint_refuses():
    known = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"one shape, got \[4, 1\] and \[3, 1\]"):
        inpaint(Causal(S), known, torch.zeros(3, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="torch.float32"):
        inpaint(Causal(S), known, torch.zeros(4, 1))
    with pytest.raises(ValueError, match="got 'dirty'"):
        inpaint(Causal(S), known, known > 0, show="dirty")
    with pytest.raises(ValueError, match="cannot absorb finished tokens"):
        inpaint(Causal(S), known, known > 0).absorb(known[None], torch.zeros(1, 4, dtype=torch.long), None)


def test_wrappers_are_denoisers():
    d = Causal(S)
    for wrapped in (guided(d, S, Terminal()), classifier_free(d, 2.0), clipped(d),
                    inpaint(d, torch.zeros(4, 1), torch.zeros(4, 1, dtype=torch.bool)),
                    monte_carlo(d, S, Terminal(), 3, noise=Noise(1))):
        assert isinstance(wrapped, Denoiser)
        assert wrapped(torch.zeros(2, 4, 1), torch.full((2, 4), 9), wrapped.init_state(2))[0].shape == (2, 4, 1)
