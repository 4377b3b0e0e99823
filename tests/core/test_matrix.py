"""Schedule matrices: the paper's pyramid and its two ends, and what checked_matrix() refuses, and how."""

from __future__ import annotations

import re

import pytest
import torch

from dforce.core.matrix import autoregressive, checked_matrix, full_sequence, pyramid
from dforce.core.schedule import cosine, flow, linear


def paper_pyramid(steps: int, horizon: int, scale: float) -> torch.Tensor:
    """The official code's pyramid, entry by entry: steps + (m - delay t) counted back, clipped to 0..steps; here in
    sampling steps still to go (0 = clean)."""
    height = steps + int((horizon - 1) * scale) + 1
    matrix = torch.zeros(height, horizon, dtype=torch.long)
    for m in range(height):
        for t in range(horizon):
            matrix[m, t] = min(max(steps + int(t * scale) - m, 0), steps)
    return matrix


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("horizon", [1, 2, 7])
@pytest.mark.parametrize("delay", [0, 1, 3, 20, 31])
def test_pyramid_is_the_papers(steps, horizon, delay):
    schedule = cosine(60)
    grid = schedule.grid(steps)
    matrix = pyramid(grid, horizon, delay)
    to_go = paper_pyramid(steps, horizon, delay)
    assert torch.equal(matrix, grid.flip(0)[to_go])
    assert matrix.shape == (steps + delay * (horizon - 1) + 1, horizon)
    assert torch.equal(checked_matrix(matrix, 60, horizon=horizon), matrix)


@pytest.mark.parametrize("schedule", [linear(100), flow(10)])
def test_the_two_ends(schedule):
    grid = schedule.grid(5)
    full = full_sequence(grid, 4)
    assert torch.equal(full, grid[:, None].expand(-1, 4)) and torch.equal(full, pyramid(grid, 4, 0))
    one_by_one = autoregressive(grid, 4)
    assert len(one_by_one) == 5 * 4 + 1
    for m, row in enumerate(one_by_one):
        # at most one token is neither noise nor clean, all before it are clean, all after it noise
        t, s = divmod(m, 5)
        expected = [0] * t + ([int(grid[s])] if t < 4 else []) + [schedule.levels] * (3 - t)
        assert row.tolist() == expected
    assert torch.equal(one_by_one, pyramid(grid, 4, 5))


def test_every_token_walks_the_whole_grid():
    grid = linear(50).grid(7)
    for column in pyramid(grid, 5, 3).T:
        assert torch.equal(torch.unique_consecutive(column), grid)


def test_pyramid_refuses():
    with pytest.raises(ValueError, match="horizon=0"):
        pyramid(torch.tensor([2, 1, 0]), 0)
    with pytest.raises(ValueError, match="delay=-1"):
        pyramid(torch.tensor([2, 1, 0]), 3, -1)


GOOD = torch.tensor([[5, 5, 5], [2, 5, 5], [0, 2, 5], [0, 0, 0]])


def rise_in_one_row_of_the_batch() -> torch.Tensor:
    matrix = GOOD[:, None].repeat(1, 2, 1)
    matrix[1, 1, 0], matrix[2, 1, 0] = 1, 3
    return matrix


@pytest.mark.parametrize("matrix, options, came, wanted", [
    (GOOD[0], {}, "[3]", "[M, T] or [M, B, T]"),
    (GOOD[:1], {}, "[1, 3]", "at least two rows"),
    (GOOD[None, None], {}, "[1, 1, 4, 3]", "[M, T] or [M, B, T]"),
    (GOOD.float(), {}, "torch.float32", "integer levels"),
    (GOOD > 0, {}, "torch.bool", "integer levels"),
    (GOOD, {"horizon": 4}, "3 tokens", "horizon=4"),
    (GOOD * 2, {}, "0..10", "0..5"),
    (GOOD - 1, {}, "-1..4", "0..5"),
    (GOOD.flip(0), {}, "token 1 goes from 0 to 2 at row 1", "renoise()"),
    (rise_in_one_row_of_the_batch(), {}, "token 0 goes from 1 to 3 at row 2", "may not rise"),
    (GOOD.clamp(max=4), {}, "[4, 4, 4]", "level 5"),
    (GOOD.clamp(min=1), {}, "[1, 1, 1]", "clean (0)"),
])
def test_check_says_what_came_and_what_was_wanted(matrix, options, came, wanted):
    with pytest.raises(ValueError) as error:
        checked_matrix(matrix, 5, **options)
    assert came in str(error.value) and wanted in str(error.value), re.sub(r"\s+", " ", str(error.value))


def test_check_lets_pass():
    assert checked_matrix(GOOD.int(), 5).dtype == torch.int64
    assert torch.equal(checked_matrix(GOOD[:, None].repeat(1, 2, 1), 5, horizon=3)[:, 1], GOOD)
    warm = GOOD.clamp(1, 4)
    assert torch.equal(checked_matrix(warm, 5, complete=False), warm)
    held = torch.full((3, 2), 2)
    assert torch.equal(checked_matrix(held, 5, complete=False), held)
