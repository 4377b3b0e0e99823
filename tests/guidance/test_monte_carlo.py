"""Monte Carlo Tree Guidance: one draw is plain guidance; draws, splits, chunks and reductions are what they claim."""

from __future__ import annotations

import math

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import full_sequence, pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import cosine, linear
from dforce.guidance.energy import guided
from dforce.guidance.monte_carlo import GoalEnergy, _Draws, jump_levels, monte_carlo
from dforce.nets.recurrent import RecurrentNet
from tests.gaussian_bed import Causal, NonCausal

S, T = linear(1000), 16
GOAL, STD = 2.0, 0.3


class Terminal:
    """log N(goal; x_T, std^2)."""

    def __init__(self, goal=GOAL, std=STD):
        self.goal, self.std = torch.tensor([goal]), std

    def features(self, x0):
        return x0[:, -1]

    def __call__(self, x0):
        return -(x0[:, -1, 0] - self.goal[0]).square() / (2 * self.std**2)


def whitened(batch, time=T, seed=0):
    """Start noise with sample mean 0 and sample covariance 1 exactly: few samples then show the law."""
    z = torch.randn(batch, time, generator=torch.Generator().manual_seed(seed)).double()
    z = z - z.mean(0)
    return (z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T).float()[..., None]


# ----------------------------------------------------------------------------------------------- one draw is guided

def small(seed=0):
    torch.manual_seed(seed)
    schedule = cosine(60)
    return Precond(RecurrentNet((2,), width=10, static={"s": 1}, token={"a": 1}).double(), schedule, "v"), schedule


class Last:
    goal, std, reduce = torch.tensor([0.5, -0.5]), 0.4, "gaussian"

    def features(self, x0):
        return x0[:, -1]

    def __call__(self, x0):
        return -(x0[:, -1] - self.goal).square().sum(1) / (2 * self.std**2) + x0[:, 0].sum(1)


def given(batch=3, time=6):
    g = torch.Generator().manual_seed(2)
    cond = {"static": {"s": torch.randn(batch, 1, generator=g).double()},
            "token": {"a": torch.randn(batch, time, 1, generator=g).double()}}
    return torch.randn(batch, time, 2, generator=g).double(), cond


@pytest.mark.parametrize("reduce", ["mean", "logmeanexp"])
@pytest.mark.parametrize("options", [{"branch": "tree"}, {"branch": "posterior"}, {"futures": "sequential"}])
@pytest.mark.parametrize("path", ["double_loop", "rows"])
def test_one_draw_is_plain_guidance_bit_for_bit(reduce, options, path):
    denoiser, schedule = small()
    x, cond = given()
    matrix = pyramid(schedule.grid(5), 6, 2)
    plain = generate(guided(denoiser, schedule, Last(), 0.3), schedule, matrix, x, cond=cond, path=path, eta=0.5)
    guide = monte_carlo(denoiser, schedule, Last(), 1, scale=0.3, reduce=reduce, **options)
    assert torch.equal(generate(guide, schedule, matrix, x, cond=cond, path=path, eta=0.5), plain)


def test_one_moment_matched_draw_is_plain_guidance():
    denoiser = Causal(S)
    matrix, x = pyramid(S.grid(10), T, 3), whitened(20)
    plain = generate(guided(denoiser, S, Terminal()), S, matrix, x)
    guide = monte_carlo(denoiser, S, Terminal(), 1, reduce="gaussian")
    torch.testing.assert_close(generate(guide, S, matrix, x), plain, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ bookkeeping

# Quick: all pairs of branch and reduction, of futures and reduction, and of branch and futures.
@pytest.mark.parametrize("branch, futures, reduce", [
    pytest.param(branch, futures, reduce, marks=[pytest.mark.slow] * ((i + j + k) % 2))
    for i, branch in enumerate(("tree", "posterior")) for j, futures in enumerate(("joint", "sequential"))
    for k, reduce in enumerate(("mean", "logmeanexp", "gaussian"))])
@pytest.mark.quick(2)
def test_neither_chunk_nor_path_matters(branch, futures, reduce):
    denoiser, schedule = small()
    x, cond = given(time=4)
    matrix = pyramid(schedule.grid(3), 4, 1)

    def run(path="auto", chunk=None, seed=0):
        guide = monte_carlo(denoiser, schedule, Last(), 4, lookahead=3, reduce=reduce, branch=branch, futures=futures,
                            scale=0.3, chunk=chunk, noise=Noise(seed))
        return generate(guide, schedule, matrix, x, cond=cond, path=path)

    wanted = run("double_loop")
    for other in (run("rows"), run(chunk=1), run(chunk=2)):
        torch.testing.assert_close(other, wanted, rtol=1e-7, atol=1e-8)
    assert (run(seed=1) - wanted).abs().max() > 1e-6


def test_chunks_bound_the_batch():
    sizes = []

    class Spy(Causal):
        def __call__(self, x, level, state, cond=None):
            sizes.append(len(x))
            return super().__call__(x, level, state, cond)

    for chunk, most in ((None, 11 * 3), (4, 12), (1, 3)):
        sizes.clear()
        guide = monte_carlo(Spy(S), S, Terminal(), 12, chunk=chunk)
        guide(torch.randn(3, T, 1), torch.full((3, T), 500), guide.init_state(3))
        assert max(sizes) == most and min(sizes) == 3


def test_splits_are_stratified_over_the_unfinished_tokens():
    """Draw 1 keeps all; of the others a share 1 - i / U keeps the i-th unfinished token, to within one draw."""
    level = torch.tensor([[500] * 8, [0, 0, 0, 10, 500, 500, 1000, 1000], [0] * 8, [0] * 7 + [3]])
    guide = monte_carlo(Causal(S), S, Terminal(), 33)
    kept = guide._kept(level, 32)
    assert kept.shape == (32, 4, 8)
    assert not (kept.long().diff(dim=2) > 0).any()                # a prefix is kept, the rest drawn anew
    for b, first in enumerate((0, 3, 7, 7)):
        unfinished = 8 - first
        assert kept[:, b, :first + 1].all()                       # finished ones and the first unfinished: always
        for i in range(unfinished):
            assert abs(int(kept[:, b, first + i].sum()) - 32 * (1 - i / unfinished)) <= 1
    assert monte_carlo(Causal(S), S, Terminal(), 4, branch="posterior")._kept(level, 4).all()
    # Another row, other splits; the same row, the same.
    assert torch.equal(guide._kept(level, 32), kept)
    assert not all(torch.equal(guide._kept(level + d, 5)[:, 0], guide._kept(level, 5)[:, 0]) for d in range(1, 5))


def test_draws_start_from_what_they_keep():
    """Kept tokens are shown at their own level and value, the others as pure noise of their own; finished ones stay."""
    shown = []

    class Spy(Causal):
        def __call__(self, x, level, state, cond=None):
            shown.append((x.detach().clone(), level.clone()))
            return super().__call__(x, level, state, cond)

    level = torch.tensor([[0, 0, 300, 600, 900, 1000]]).expand(2, 6)
    x = torch.randn(2, 6, 1)
    guide = monte_carlo(Spy(S), S, Terminal(), 9, lookahead=3)
    guide(x, level, guide.init_state(2))
    kept = guide._kept(level, 8)
    (first, own), (drawn, levels), *rest = shown
    assert torch.equal(first, x) and torch.equal(own, level)
    drawn, levels = drawn.view(8, 2, 6), levels.view(8, 2, 6)
    assert torch.equal(levels, torch.where(kept, level, 1000))
    assert torch.equal(drawn[kept], x[..., 0].expand(8, 2, 6)[kept])
    fresh = drawn[~kept]
    assert len(fresh.unique()) == len(fresh) > 20 and not torch.isin(fresh, x).any()
    for later, at in rest:                                         # kept tokens never move in a tree
        assert torch.equal(later.view(8, 2, 6)[kept], drawn[kept]) and torch.equal(at.view(8, 2, 6)[kept], levels[kept])
    assert len(rest) == 2 and (rest[-1][1].view(8, 2, 6)[~kept] == jump_levels(S, 3)[-1]).all()


def test_posterior_draws_move_from_their_own_level():
    shown = []

    class Spy(Causal):
        def __call__(self, x, level, state, cond=None):
            shown.append((x.detach().clone(), level.clone()))
            return super().__call__(x, level, state, cond)

    jumps = jump_levels(S, 3)
    level = torch.tensor([[0, 5, jumps[1] + 10, 900, 1000]])
    x = torch.randn(1, 5, 1)
    guide = monte_carlo(Spy(S), S, Terminal(), 3, lookahead=3, branch="posterior")
    guide(x, level, guide.init_state(1))
    (_, _), (start, first), (_, second), (last, third) = shown
    assert torch.equal(start, x.expand(3, -1, -1)) and torch.equal(first, level.expand(3, -1))
    assert second[0].tolist() == [min(k, jumps[0]) for k in level[0].tolist()]
    assert third[0].tolist() == [min(k, jumps[1]) for k in level[0].tolist()]
    assert torch.equal(last[:, :2], x[:, :2].expand(3, -1, -1)) and len(last[:, -1].unique()) == 3


def test_the_draws_do_not_share_noise_with_the_sampler():
    """A planner hands one Noise to both: no number may be used twice, at any (row, token)."""
    calls = []

    def spy(row, token, like, *, salt=0, sample=None):
        calls.append(salt)
        return Noise(0)(row, token, like, salt=salt, sample=sample)

    for futures in ("joint", "sequential"):
        guide = monte_carlo(Causal(S), S, Terminal(), 4, futures=futures, noise=spy)
        guide(torch.randn(2, 4, 1), torch.full((2, 4), 3), guide.init_state(2))
    assert calls and max(calls) < 0


# -------------------------------------------------------------------------------------------------------- reductions

def combined(reduce, values, gradient, kept, scale=0.7, goal=None):
    energy = Terminal() if goal is None else goal
    guide = monte_carlo(Causal(S), S, energy, len(kept), reduce=reduce, scale=scale)
    return guide._combine(_Draws(values, gradient, kept))


def pretend(features=1, draws=6, batch=2, time=3):
    """Values that are linear in the tokens, so that autograd of the reduction has something to say."""
    g = torch.Generator().manual_seed(0)
    slope = torch.randn(features, draws, batch, time, 1, generator=g).double()
    base = torch.randn(draws, batch, features, generator=g).double()
    return slope, base


@pytest.mark.parametrize("reduce", ["mean", "logmeanexp", "gaussian"])
def test_reductions_by_autograd(reduce):
    features = 2 if reduce == "gaussian" else 1
    slope, base = pretend(features)
    x = torch.zeros(2, 3, 1).double().requires_grad_()
    value = base + torch.einsum("fnbte,bte->nbf", slope, x)
    goal = Last()
    if reduce == "mean":
        potential = 0.7 * value[..., 0].mean(0)
    elif reduce == "logmeanexp":
        potential = (0.7 * value[..., 0]).exp().mean(0).log()
    else:
        cov = goal.std**2 * torch.eye(2).double() + torch.stack([torch.cov(value[:, b].T) for b in range(2)])
        law = torch.distributions.MultivariateNormal(value.mean(0), cov)
        potential = 0.7 * law.log_prob(goal.goal.double())
    wanted, = torch.autograd.grad(potential.sum(), x)
    got = combined(reduce, base, slope, torch.ones(6, 2, 3).bool(), goal=goal if features == 2 else None)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("reduce", ["mean", "logmeanexp", "gaussian"])
def test_a_token_is_combined_over_the_draws_that_kept_it(reduce):
    slope, base = pretend()
    lengths = torch.tensor([3, 2, 2, 1, 3, 1])
    kept = (torch.arange(3) < lengths[:, None])[:, None].expand(6, 2, 3)
    got = combined(reduce, base, slope, kept)
    for t in range(3):
        those = kept[:, 0, t]
        alone = combined(reduce, base[those], slope[:, those], torch.ones(int(those.sum()), 2, 3).bool())
        torch.testing.assert_close(got[:, t], alone[:, t])


def test_log_mean_exp_survives_huge_energies():
    slope, base = pretend()
    got = combined("logmeanexp", 1e6 * base, slope, torch.ones(6, 2, 3).bool())
    best = base[..., 0].argmax(0)
    torch.testing.assert_close(got, torch.stack([0.7 * slope[0, best[b], b] for b in range(2)]))


def test_goals_of_their_own():
    """goal [B, F]: each sequence is drawn to its own."""
    class Two(Terminal):
        goal = torch.tensor([[2.0], [-2.0]])

        def __init__(self):
            self.std = STD

        def __call__(self, x0):
            raise AssertionError("moments need no energies")

    guide = monte_carlo(Causal(S), S, Two(), 8, reduce="gaussian")
    x = torch.zeros(2, 4, 1)
    x0, _ = guide(x, torch.full((2, 4), 500), guide.init_state(2))
    assert (x0[0] > 0).all() and (x0[1] < 0).all()


# --------------------------------------------------------------------------------------------------- levels, errors

def test_jump_levels():
    for lookahead, nats in ((2, [0.0]), (3, [-2.0, 2.0]), (4, [-4.0, 0.0, 4.0])):
        levels = jump_levels(S, lookahead)
        got = S.log_snr(torch.tensor(levels)).tolist()
        assert got == pytest.approx(nats, abs=0.2) and levels == sorted(levels, reverse=True)
    assert jump_levels(S, 12) == S.grid(12)[1:-1].tolist()
    for lookahead in range(2, 15):
        assert len(jump_levels(S, lookahead)) == lookahead - 1
        assert all(0 < k < 1000 for k in jump_levels(S, lookahead))


def test_the_energys_own_reduction_is_the_default():
    denoiser = Causal(S)
    assert monte_carlo(denoiser, S, Last(), 2).reduce == "gaussian"
    assert monte_carlo(denoiser, S, Terminal(), 2).reduce == "logmeanexp"
    assert monte_carlo(denoiser, S, Last(), 2, reduce="mean").reduce == "mean"
    assert isinstance(Terminal(), GoalEnergy) and not isinstance(lambda x0: x0, GoalEnergy)


@pytest.mark.parametrize("options, message", [
    ({"draws": 0}, "draws and chunk must be >= 1 .* got 0"),
    ({"draws": 4, "lookahead": 1}, "lookahead >= 2 .* got 4, None, 1"),
    ({"draws": 4, "chunk": -2}, "got 4, -2, 3"),
    ({"draws": 4, "reduce": "max"}, "'max'"),
    ({"draws": 4, "branch": "bush"}, "'bush'"),
    ({"draws": 4, "futures": "past"}, "'past'"),
])
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        monte_carlo(Causal(S), S, Terminal(), **options)


def test_bad_combinations():
    with pytest.raises(ValueError, match="needs an energy with goal, std and features"):
        monte_carlo(Causal(S), S, lambda x0: x0.sum((1, 2)), 4, reduce="gaussian")
    with pytest.raises(ValueError, match="sequential futures need a causal denoiser"):
        monte_carlo(NonCausal(S, 4), S, Terminal(), 4, futures="sequential")
    guide = monte_carlo(Causal(S), S, lambda x0: x0.sum(2), 4)
    with pytest.raises(ValueError, match="one number each"):
        guide(torch.zeros(2, 3, 1), torch.full((2, 3), 5), guide.init_state(2))


def test_leaves_no_graph():
    denoiser, schedule = small()
    x, cond = given()
    guide = monte_carlo(denoiser, schedule, Last(), 3)
    x0, _ = guide(x, torch.full((3, 6), 30), guide.init_state(3, cond), cond)
    assert not x0.requires_grad and all(p.grad is None for p in denoiser.parameters())
    assert math.isfinite(float(generate(guide, schedule, full_sequence(schedule.grid(3), 6), x, cond=cond).sum()))
