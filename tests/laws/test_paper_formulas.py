"""The formulas of the papers, written from their text in plain numbers, one entry at a time, and what differs.

Diffusion Forcing: Chen et al. 2024, arXiv 2407.01392, appendix B (equation B.1, sections B.1 and B.7) and Algorithm 2.
DDIM: Song et al. 2021, equations 12 and 16.
"""

from __future__ import annotations

import math

import pytest
import torch

from dforce.core.loss import fused_snr, min_snr
from dforce.core.matrix import autoregressive, full_sequence, pyramid
from dforce.core.schedule import cosine, linear
from dforce.core.transition import transition

LEVELS = 1000


def linear_alpha_bar(levels: int = LEVELS) -> list[float]:
    """prod (1 - beta) with beta rising linearly from 1e-4 to .02 (Ho et al. 2020, section 4); entry 0 is clean data."""
    bar = [1.0]
    for k in range(levels):
        bar.append(bar[-1] * (1 - (1e-4 + (0.02 - 1e-4) * k / (levels - 1))))
    return bar


# --------------------------------------------------------------------------------------------- the scheduling matrix

@pytest.mark.parametrize("levels, horizon", [(3, 1), (4, 4), (6, 4), (9, 7)])
def test_equation_b1(levels, horizon):
    """K_pyramid as it is printed: rows (K, K, ...), (K-1, K, ...), ..., (1, 2, ..., H), (0, 1, ..., H-1), ..., 0."""
    matrix = pyramid(torch.arange(levels, -1, -1), horizon).tolist()
    assert len(matrix) == levels + horizon
    assert matrix[0] == [levels] * horizon and matrix[1] == [levels - 1] + [levels] * (horizon - 1)
    assert matrix[levels - 1] == list(range(1, horizon + 1)) and matrix[levels] == list(range(horizon))
    assert matrix[-2] == [0] * (horizon - 1) + [1] and matrix[-1] == [0] * horizon
    assert matrix == [[min(max(levels - row + t, 0), levels) for t in range(horizon)] for row in range(len(matrix))]


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("horizon", [1, 5])
def test_the_schedules_by_their_names(steps, horizon):
    """In sampling steps still to go. full_sequence: all tokens count down together. autoregressive: a token starts
    where the one before it is clean (the pyramid whose uncertainty scale is the number of steps). pyramid: with scale u
    token t starts u t rows late."""
    to_go = torch.arange(steps, -1, -1)
    assert full_sequence(to_go, horizon).tolist() == [[m] * horizon for m in range(steps, -1, -1)]
    one_by_one = [[steps] * horizon]
    for t in range(horizon):
        for m in range(steps - 1, -1, -1):
            one_by_one.append([0] * t + [m] + [steps] * (horizon - 1 - t))
    assert autoregressive(to_go, horizon).tolist() == one_by_one
    for scale in (1, 2, 7):
        rows = [[steps] * horizon]
        while any(rows[-1]):
            started = [len(rows) > scale * t for t in range(horizon)]
            rows.append([max(left - go, 0) for left, go in zip(rows[-1], started, strict=True)])
        assert pyramid(to_go, horizon, scale).tolist() == rows


@pytest.mark.parametrize("steps", [10, 50, 100, 1000])
def test_the_levels_that_the_paper_samples_at(steps):
    """B.6: K = 1000, 50 DDIM steps for planning, 100 for video; the authors' code spaces them evenly and numbers
    levels from -1 (clean) to K - 1, we from 0 to K. Where steps do not divide K it rounds towards 0 and `grid` to the
    nearest, so that levels can differ by one."""
    code = [math.trunc(-1 + i * LEVELS / steps) for i in range(steps, -1, -1)]
    assert linear(LEVELS).grid(steps, "index").tolist() == [level + 1 for level in code]
    grid = linear(LEVELS).grid(7, "index")
    assert max(abs(int(level) - 1 - math.trunc(-1 + i * LEVELS / 7)) for level, i in zip(grid, range(7, -1, -1),
                                                                                         strict=True)) == 1


# ------------------------------------------------------------------------------------------------------- DDIM and DDPM

def coefficients(schedule, level, to, eta):
    """(of x0_hat, of x_t, std) of a step: the step is linear, so unit tokens show them."""
    one, zero = torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    k, s = torch.tensor([[level]]), torch.tensor([[to]])
    of_x0, of_x = (transition(schedule, x, x0, k, s, eta=eta) for x, x0 in ((zero, one), (one, zero)))
    return float(of_x0.mean), float(of_x.mean), float(of_x.std)


STEPS = [(t, s) for t in (1, 2, 20, 500, 980, 1000) for s in (0, 1, 19, 480, 979, 999) if s < t]


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [linear(LEVELS), cosine(LEVELS)], ids=["linear", "cosine"])
def test_ddim_equations_12_and_16(schedule, eta):
    """Their alpha is our alpha^2. x_s = sqrt(a_s) x0 + sqrt(1 - a_s - sigma^2) eps + sigma e (12), with
    eps = (x_t - sqrt(a_t) x0) / sqrt(1 - a_t) and sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s) (16)."""
    table = linear_alpha_bar() if schedule.alpha[-1] > 1e-3 else [float(a) ** 2 for a in schedule.alpha]
    for t, s in STEPS:
        a_t, a_s = table[t], table[s]
        sigma = eta * math.sqrt((1 - a_s) / (1 - a_t)) * math.sqrt(1 - a_t / a_s)
        carried = math.sqrt(max(1 - a_s - sigma**2, 0.0)) / math.sqrt(1 - a_t)
        wanted = (math.sqrt(a_s) - carried * math.sqrt(a_t), carried, sigma)
        assert coefficients(schedule, t, s, eta) == pytest.approx(wanted, rel=1e-9, abs=1e-9), (t, s)


def test_line_7_of_algorithm_2():
    """x_new = (x - (1 - alpha_k) / sqrt(1 - bar_k) eps) / sqrt(alpha_k) + sigma_k w: eta = 1 from a level to the next,
    sigma_k^2 the posterior variance of Ho et al. 2020, eq. 7."""
    bar, schedule = linear_alpha_bar(), linear(LEVELS)
    for k in (2, 3, 50, 500, 1000):
        alpha, sigma = bar[k] / bar[k - 1], math.sqrt((1 - bar[k - 1]) / (1 - bar[k]) * (1 - bar[k] / bar[k - 1]))
        of_eps = -(1 - alpha) / math.sqrt(1 - bar[k]) / math.sqrt(alpha)
        of_x = 1 / math.sqrt(alpha) + of_eps / math.sqrt(1 - bar[k])     # for eps = (x - sqrt(bar) x0) / sqrt(1 - bar)
        of_x0 = -of_eps * math.sqrt(bar[k] / (1 - bar[k]))
        assert coefficients(schedule, k, k - 1, 1.0) == pytest.approx((of_x0, of_x, sigma), rel=1e-8), k


def test_b5_tokens_that_keep_their_level_are_copied():
    """"In the case of k = K ... it will stay as white noise"; at k = 0 the old value is copied."""
    for level in (0, LEVELS):
        assert coefficients(linear(LEVELS), level, level, 1.0) == (0.0, 1.0, 0.0)


# ----------------------------------------------------------------------------------------------------------- fused SNR

def fused_by_the_text(ratio, clip, decay, *, faded):
    """B.1: S_t = min(SNR_t, C) / C; C_t = g C_{t-1} + (1 - g) S_t; S'_t = 1 - (1 - S_t)(1 - C_{t-1}).

    faded: g C_{t-1} in the place of C_{t-1}. The running mean begins with its first value.
    """
    past, fused = None, []
    for value in ratio:
        own = min(value, clip) / clip
        shown = 0.0 if past is None else (decay if faded else 1.0) * past
        fused.append(1 - (1 - own) * (1 - shown))
        past = own if past is None else decay * past + (1 - decay) * own
    return fused


@pytest.mark.parametrize("clip", [1.0, 5.0, 20.0])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.96, 0.999])
def test_fused_snr_appendix_b1(clip, decay):
    """`fused_snr` is clip S'_t with the cumulated SNR faded once more, as the authors' code has it: g is the proportion
    of a token's signal that reaches the next one, so what was cumulated up to t - 1 arrives at t times g. The text
    leaves that factor out; the difference is clip (1 - g)(1 - S_t) C_{t-1}: at most 4% of C at g = .96."""
    log_snr = 3 * torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = fused_snr(clip, decay)(log_snr)
    for row, weights in zip(log_snr.exp().tolist(), got.tolist(), strict=True):
        by_code, by_text = (fused_by_the_text(row, clip, decay, faded=faded) for faded in (True, False))
        assert weights == pytest.approx([clip * value for value in by_code], rel=1e-9)
        gaps = [clip * text - weight for text, weight in zip(by_text, weights, strict=True)]
        assert all(-1e-9 < gap <= clip * (1 - decay) + 1e-9 for gap in gaps) and max(gaps) > 0
    torch.testing.assert_close(got[:, 0], min_snr(clip)(log_snr)[:, 0])  # the first token has no past
    assert ((got > 0) & (got <= clip * (1 + 1e-12))).all()
