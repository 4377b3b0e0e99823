"""Sampling: every path gives the same tokens, second order is DPM-Solver++(2M), draws may resample."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dforce.core.denoiser import Precond
from dforce.core.matrix import autoregressive, full_sequence, pyramid
from dforce.core.noise import Noise
from dforce.core.sample import Descent, generate, sample
from dforce.core.schedule import cosine, flow, linear
from dforce.core.step import Memory, advance, extrapolate, forget, no_memory
from dforce.core.transition import renoise, transition
from dforce.core.tree import leaves
from dforce.core.wavefront import ordered
from dforce.guidance.energy import guided
from dforce.guidance.wrapper import Wrapper, classifier_free, clipped
from dforce.nets.recurrent import RecurrentNet
from tests.gaussian_bed import Causal, NonCausal

S = cosine(40)
B, T, E = 3, 6, (2,)


def network(seed=0, schedule=S, predict="x0", **options):
    torch.manual_seed(seed)
    net = RecurrentNet(E, width=12, depth=2, **options).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.0)  # far from linear, far from forgetful
    return Precond(net, schedule, predict)


def conditioned(seed=0, schedule=S):
    g = torch.Generator().manual_seed(seed)
    cond = {"token": {"a": torch.randn(B, T, 2, generator=g).double()},
            "static": {"start": torch.randn(B, 3, generator=g).double()}}
    return network(seed, schedule, static={"start": 3}, token={"a": 2}), cond


def start(seed=1):
    return torch.randn(B, T, *E, generator=torch.Generator().manual_seed(seed)).double()


def random_matrix(seed: int, batched: bool, levels: int = S.levels) -> torch.Tensor:
    """Tokens start and finish in order, with plateaus, warm starts, and last levels that need not be clean."""
    g = torch.Generator().manual_seed(seed)

    def one() -> torch.Tensor:
        rows = 14
        first = torch.randint(0, rows - 2, (T,), generator=g).sort().values
        last = torch.maximum(first + 1, torch.randint(1, rows, (T,), generator=g).sort().values).cummax(0).values
        matrix = torch.zeros(rows, T, dtype=torch.long)
        for t in range(T):
            n = int(last[t] - first[t])
            top = int(torch.randint(levels // 2, levels + 1, (), generator=g))
            bottom = int(torch.randint(0, 3, (), generator=g))
            between = torch.randint(bottom + 1, top, (n - 1,), generator=g).sort(descending=True).values
            before, after = torch.full((int(first[t]) + 1,), top), torch.full((rows - int(last[t]),), bottom)
            column = torch.cat([before, between, after])
            matrix[:, t] = column[:rows]
        return matrix

    return torch.stack([one() for _ in range(B)], 1) if batched else one()


GRID = S.grid(7)
MATRICES = {"full": full_sequence(GRID, T), "pyramid": pyramid(GRID, T, 2), "autoregressive": autoregressive(GRID, T),
            "every_level": pyramid(torch.arange(S.levels, -1, -1), T, 1),
            **{f"random{seed}{'b' * batched}": random_matrix(seed, batched)
               for seed in range(3) for batched in (False, True)}}


def test_the_random_matrices_are_what_they_are_meant_to_be():
    for name, matrix in MATRICES.items():
        assert ordered(matrix if matrix.ndim == 3 else matrix[:, None]), name
    plateaus = [(m.diff(dim=0) == 0).sum() for m in MATRICES.values() if m.ndim == 3]
    assert min(plateaus) > 5


# ------------------------------------------------------------------------------------------------------- equal paths

# Quick: every matrix with each eta and with each order, and over the matrices all four pairs of them.
@pytest.mark.parametrize("name, eta, order", [
    pytest.param(name, eta, order, marks=[pytest.mark.slow] * ((i + (eta > 0) + order) % 2))
    for i, name in enumerate(MATRICES) for eta in (0.0, 0.7) for order in (1, 2)])
@pytest.mark.quick(6)
def test_wavefront_is_rows_is_double_loop(name, eta, order):
    denoiser, cond = conditioned()
    options = dict(cond=cond, eta=eta, order=order, noise=Noise(5))
    matrix, x = MATRICES[name], start()
    loop = generate(denoiser, S, matrix, x, path="double_loop", **options)
    *_, last = sample(denoiser, S, matrix, x, **options)
    assert torch.equal(loop, last.x.detach())
    for path in ("wavefront", "rows", "auto"):
        torch.testing.assert_close(generate(denoiser, S, matrix, x, path=path, **options), loop, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("wrap", [lambda d: classifier_free(d, 2.0), lambda d: clipped(d, -0.5, 0.5),
                                  lambda d: classifier_free(clipped(d), 0.5)])
def test_equal_paths_through_wrappers(wrap):
    denoiser, x = wrap(network(4)), start()
    loop = generate(denoiser, S, MATRICES["pyramid"], x, path="double_loop", eta=0.5)
    for path in ("wavefront", "rows"):
        torch.testing.assert_close(generate(denoiser, S, MATRICES["pyramid"], x, path=path, eta=0.5), loop)


@pytest.mark.parametrize("predict", ["v", "flow"])
def test_equal_paths_from_pure_noise_with_alpha_zero(predict):
    schedule = flow(30)
    denoiser = network(2, schedule, predict)
    matrix = pyramid(schedule.grid(6), T, 1)
    loop = generate(denoiser, schedule, matrix, start(), path="double_loop", eta=1.0)
    assert torch.isfinite(loop).all()
    torch.testing.assert_close(generate(denoiser, schedule, matrix, start(), eta=1.0), loop)


def test_a_given_state_is_used_and_left_alone():
    denoiser = network()
    state = denoiser.absorb(start(3), torch.zeros(B, T, dtype=torch.long), denoiser.init_state(B))
    before = [leaf.clone() for leaf in leaves(state)]
    results = [generate(denoiser, S, MATRICES["pyramid"], start(), state=state, path=path)
               for path in ("double_loop", "rows", "wavefront")]
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])
    assert (results[0] - generate(denoiser, S, MATRICES["pyramid"], start())).abs().max() > 1e-3
    assert all(torch.equal(a, b) for a, b in zip(before, leaves(state), strict=True))


@pytest.mark.parametrize("path", ["double_loop", "rows", "wavefront"])
@pytest.mark.parametrize("batch, tokens", [(1, T), (B, 1), (1, 1), (B, T)])
def test_the_start_is_left_alone(path, batch, tokens):
    """With one sequence or one token a transposed tensor is still contiguous, and so the caller's own memory."""
    x = start()[:batch, :tokens].contiguous()
    before = x.clone()
    generate(network(), S, pyramid(GRID, tokens, 2), x, path=path)
    assert torch.equal(x, before)


class Counting(Wrapper):
    """Counts how many tokens its denoiser is shown."""

    def __init__(self, denoiser):
        super().__init__(denoiser)
        self.shown, self.calls = 0, 0

    def absorb(self, x, level, state, cond=None):
        self.shown += x.shape[0] * x.shape[1]
        return self.denoiser.absorb(x, level, state, cond)

    def __call__(self, x, level, state, cond=None):
        self.shown, self.calls = self.shown + x.shape[0] * x.shape[1], self.calls + 1
        return self.denoiser(x, level, state, cond)


@pytest.mark.parametrize("schedule", [S, flow(40)])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_descent_is_generate_bit_for_bit(schedule, steps):
    torch.manual_seed(0)
    denoiser, x, grid = Precond(RecurrentNet(E, width=12), schedule), torch.randn(B, 1, *E), schedule.grid(steps)
    for network in (denoiser, guided(denoiser, schedule, lambda x0: -x0.square().sum((1, 2)), 0.3)):
        state = network.init_state(B)
        for order in (1, 2):
            whole = generate(network, schedule, autoregressive(grid, 1), x, state=state, order=order)
            assert torch.equal(Descent(schedule, grid, order)(network, x, state), whole)


def test_nothing_needless_is_computed():
    shown = {}
    for path in ("double_loop", "rows", "wavefront"):
        denoiser = Counting(network())
        generate(denoiser, S, MATRICES["autoregressive"], start(), path=path)
        shown[path] = denoiser.shown, denoiser.calls
    assert shown["double_loop"][0] == B * T * 42
    assert shown["rows"][0] <= B * T * (7 + 1) and shown["wavefront"][0] <= B * T * (7 + 1)
    denoiser = Counting(network())
    generate(denoiser, S, MATRICES["pyramid"], start(), path="wavefront")
    assert denoiser.calls <= len(MATRICES["pyramid"]) + T


def test_auto_takes_what_the_denoiser_allows():
    x = torch.zeros(2, 4, 1)
    non_causal = NonCausal(S, 4)
    assert generate(non_causal, S, pyramid(GRID, 4), x).shape == x.shape
    for path, message in (("wavefront", "recurrent denoiser without guidance"), ("rows", "causal denoiser")):
        with pytest.raises(ValueError, match=message):
            generate(non_causal, S, pyramid(GRID, 4), x, path=path)
    with pytest.raises(ValueError, match="wavefront needs"):
        generate(guided(network(), S, lambda x0: x0.sum((1, 2))), S, MATRICES["pyramid"], start(), path="wavefront")
    unordered = pyramid(GRID, T, 2).flip(1)
    torch.testing.assert_close(generate(network(), S, unordered, start()),
                               generate(network(), S, unordered, start(), path="double_loop"), rtol=0, atol=0)
    with pytest.raises(ValueError, match="start and finish in order"):
        generate(network(), S, unordered, start(), path="rows")


def test_bad_input():
    x = start()
    for matrix, message in ((pyramid(GRID, T + 1), "horizon=6"), (MATRICES["random0b"][:, :2], "batch of 2, x has 3"),
                            (pyramid(GRID, T).flip(0), "may not rise"), (pyramid(GRID, T) * 2, r"0\.\.40")):
        with pytest.raises(ValueError, match=message):
            generate(network(), S, matrix, x)
    with pytest.raises(ValueError, match="order must be 1 .* got 3"):
        generate(network(), S, MATRICES["full"], x, order=3)
    with pytest.raises(ValueError, match="'loop'"):
        generate(network(), S, MATRICES["full"], x, path="loop")


# ------------------------------------------------------------------------------------------------------ second order

def half_log_snr(schedule, k):
    return math.log(float(schedule.alpha[k])) - math.log(float(schedule.sigma[k]))


def two_m(schedule, x0_of, grid, x, noises=None):
    """DPM-Solver++(2M), and its SDE form where `noises` are given, as in Lu et al. (2022b), Algorithm 2 and eq. 18."""
    previous = h_before = None
    for s, t in itertools.pairwise(grid):
        data = x0_of(x, s)
        if t == 0:
            return data
        h = half_log_snr(schedule, t) - half_log_snr(schedule, s)
        alpha, sigma, sigma_s = (float(v) for v in (schedule.alpha[t], schedule.sigma[t], schedule.sigma[s]))
        r = None if previous is None else h_before / h
        blend = data if r is None else (1 + 1 / (2 * r)) * data - 1 / (2 * r) * previous
        if noises is None:
            x = sigma / sigma_s * x - alpha * math.expm1(-h) * blend
        else:
            x = (sigma / sigma_s * math.exp(-h) * x - alpha * math.expm1(-2 * h) * blend
                 + sigma * math.sqrt(-math.expm1(-2 * h)) * noises[s])
        previous, h_before = data, h


@pytest.mark.parametrize("schedule", [linear(100), cosine(50)], ids=["linear", "cosine"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_order_two_is_2m(schedule, eta):
    denoiser = network(3, schedule)
    grid = schedule.grid(8)
    x, noise = start(2)[:, :1], Noise(3)
    noises = {int(k): noise(row, torch.arange(1), x) for row, k in enumerate(grid[:-1])} if eta else None

    def x0_of(x, level):
        return denoiser(x, torch.full(x.shape[:2], level), denoiser.init_state(B))[0]

    with torch.no_grad():
        wanted = two_m(schedule, x0_of, grid.tolist(), x, noises)
        got = generate(denoiser, schedule, full_sequence(grid, 1), x, eta=eta, noise=noise)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    first_order = generate(denoiser, schedule, full_sequence(grid, 1), x, eta=eta, noise=noise, order=1)
    assert (got - first_order).abs().max() > 1e-4


def test_second_order_converges_faster():
    """The probability flow of Gaussian data is known: x_0 = x_K std. Halving the step: error / 2 and / 4."""
    schedule = linear(8000)
    x = torch.ones(1, 1, 1)

    class Gaussian(Causal):
        def __call__(self, x, level, state, cond=None):
            alpha, sigma = schedule(level, x)
            return 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * x, state

    x = x.double()
    scale = float((0.25 * schedule.alpha[-1] ** 2 + schedule.sigma[-1] ** 2).sqrt())

    def error(steps, order):
        matrix = full_sequence(schedule.grid(steps), 1)
        return abs(float(generate(Gaussian(schedule), schedule, matrix, x, order=order)) - 0.5 / scale)

    errors = {order: [error(steps, order) for steps in (10, 20, 40)] for order in (1, 2)}
    assert all(1.6 < a / b < 2.6 for a, b in itertools.pairwise(errors[1])), errors
    assert all(b < 0.5 * a for a, b in itertools.pairwise(errors[2])), errors
    assert errors[2][1] < 0.25 * errors[1][1], errors


def test_extrapolation_is_first_order_where_there_is_nothing_to_go_by():
    x0, memory_x0 = torch.randn(2, 1, 5, 1).unbind(0)
    level = torch.tensor([[20, 20, 20, 20, 20]])
    to = torch.tensor([[10, 20, 0, 10, 10]])
    remembered = torch.tensor([[30, 30, 30, 0, 20]])   # moved before; held; to the end; never moved; noised again
    got = extrapolate(S, x0, level, to, Memory(memory_x0, remembered))
    assert torch.equal(got[:, 1:], x0[:, 1:]) and not torch.equal(got[:, 0], x0[:, 0])
    h, h_before = half_log_snr(S, 10) - half_log_snr(S, 20), half_log_snr(S, 20) - half_log_snr(S, 30)
    torch.testing.assert_close(got[:, 0], x0[:, 0] + h / (2 * h_before) * (x0 - memory_x0)[:, 0])


def test_memory_survives_plateaus_and_is_dropped_by_renoise():
    denoiser, x = network(), start()[:, :1]
    state, level = denoiser.init_state(B), lambda k: torch.full((B, 1), k)

    def go(x, a, b, memory):
        step, memory, _ = advance(denoiser, S, x, level(a), level(b), state, memory=memory)
        return step.x, memory

    x1, m1 = go(x, 40, 30, no_memory(x))
    held, m2 = go(x1, 30, 30, m1)
    assert torch.equal(held, x1) and torch.equal(m2.x0, m1.x0) and torch.equal(m2.level, m1.level)
    assert (m1.level == 40).all()
    up = renoise(S, x1, level(30), level(35), torch.randn(x1.shape).double())
    fresh, _ = go(up, 35, 20, no_memory(x))
    dropped, _ = go(up, 35, 20, forget(m1, torch.ones(B, 1, dtype=torch.bool)))
    kept, _ = go(up, 35, 20, m1)
    assert torch.equal(dropped, fresh) and not torch.equal(kept, fresh)
    some = forget(m1, torch.tensor([[True], [False], [False]]))
    assert some.level.flatten().tolist() == [0, 40, 40] and torch.equal(some.x0, m1.x0)


def test_a_step_reports_its_kernel():
    denoiser, x = network(), start()
    level, to = torch.full((B, T), 20), torch.full((B, T), 10)
    noise = torch.randn(x.shape).double()
    step, memory, state = advance(denoiser, S, x, level, to, denoiser.init_state(B), memory=no_memory(x), eta=0.8,
                                  noise=noise)
    x0, after = denoiser(x, level, denoiser.init_state(B))
    kernel = transition(S, x, x0, level, to, eta=0.8)
    assert torch.equal(step.kernel.mean, kernel.mean) and torch.equal(step.x, kernel.sample(noise))
    assert torch.equal(step.x0, x0) and torch.equal(memory.x0, x0) and torch.equal(state["z"], after["z"])
    assert torch.equal(step.level, level) and torch.equal(step.to, to) and step.ancestors is None


# ------------------------------------------------------------------------------------------------------------- draws

@torch.no_grad()
def test_ancestors_permute_everything_that_belongs_to_a_row():
    """Resampling by a permutation, and the same run with rows relabelled by hand, must agree from then on."""
    denoiser, cond = conditioned()
    order = torch.tensor([2, 0, 1])
    matrix, x, at = pyramid(GRID, T, 2), start(), 5
    state = denoiser.absorb(start(3), torch.zeros(B, T, dtype=torch.long), denoiser.init_state(B, cond), cond)
    seen = []

    def swap(step, noise):
        seen.append(step.x)
        rows = order if len(seen) == at else torch.arange(B)
        return step.kernel.sample(noise)[rows], (rows if len(seen) == at else None)

    *_, last = sample(denoiser, S, matrix, x, state=state, cond=cond, draw=swap)
    *_, unpermuted = sample(denoiser, S, matrix, x, state=state, cond=cond)
    torch.testing.assert_close(last.x, unpermuted.x[order])   # rows do not interact; eta = 0
    assert last.ancestors is None


@torch.no_grad()
def test_ancestors_may_duplicate():
    denoiser, matrix, x = network(), pyramid(GRID, T, 2), start()
    winner = torch.tensor([1, 1, 1])

    def keep_best(step, noise):
        return step.kernel.sample(noise)[winner], winner

    steps = list(sample(denoiser, S, matrix, x, draw=keep_best))
    *_, alone = sample(denoiser, S, matrix, x)
    assert all(torch.equal(s.ancestors, winner) for s in steps)
    torch.testing.assert_close(steps[-1].x, alone.x[winner])


@torch.no_grad()
def test_a_draw_gets_the_noise_and_std_reaches_the_step():
    denoiser, x, taken = network(), start(), []

    def look(step, noise):
        taken.append(noise)
        return step.kernel.sample(noise), None

    steps = list(sample(denoiser, S, MATRICES["full"], x, draw=look, noise=Noise(9), std=0.01, min_std=0.05, order=1))
    assert torch.equal(taken[2], Noise(9)(2, torch.arange(T), x))
    assert (steps[0].kernel.std == 0.01).all() and (steps[-1].kernel.std == 0.05).all()
