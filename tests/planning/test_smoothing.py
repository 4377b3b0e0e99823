"""The smoother: least squares in closed form; it keeps the start, and a plan without leaps as it is."""

import numpy as np
import pytest

from dforce.planning.planner import DiffusionPlanner
from dforce.planning.smoothing import smoothed
from tests.small_planner import GOALS, LAYOUT, STARTS, small


@pytest.mark.parametrize("horizon, stack, reach", [(12, 4, 3.0), (13, 4, 0.5), (7, 3, 20.0), (4, 2, 2.0)])
def test_it_is_the_least_squares_solution_and_keeps_the_start(horizon, stack, reach):
    path = np.random.default_rng(0).normal(size=(3, horizon + 1, 2))
    step = np.diff(path, axis=1)
    for seam in range(0, horizon, stack):
        beside = [t for t in (seam - 1, seam + 1) if 0 <= t < horizon]
        step[:, seam] = np.mean([np.diff(path, axis=1)[:, t] for t in beside], axis=0)
    places = smoothed(path, stack, reach)
    np.testing.assert_array_equal(places[:, 0], path[:, 0])
    difference = np.eye(horizon) - np.eye(horizon, k=-1)
    system = np.concatenate([np.eye(horizon), reach * difference])
    for n in range(len(path)):
        wanted = np.concatenate([path[n, 1:], reach * step[n]])
        wanted[horizon] += reach * path[n, 0]
        np.testing.assert_allclose(places[n, 1:], np.linalg.lstsq(system, wanted, rcond=None)[0], atol=1e-10)


def test_a_plan_without_leaps_is_a_fixed_point_and_a_leap_is_spread():
    even = np.cumsum(np.full((2, 41, 2), 0.03), axis=1)
    np.testing.assert_allclose(smoothed(even, 10, 10.0), even, atol=1e-12)
    turning = even + np.linspace(0, 0.2, 41)[:, None] ** 2  # an even acceleration has no leap either, but at the start
    np.testing.assert_allclose(smoothed(turning, 10, 10.0), turning, atol=1e-3)
    leaping = even + 0.3 * (np.arange(41) > 20)[:, None]
    paths = even, leaping, smoothed(leaping, 10, 10.0)
    longest = [np.linalg.norm(np.diff(path, axis=1), axis=-1).max() for path in paths]
    assert longest[1] > 10 * longest[0] and longest[2] < 2 * longest[0]


def test_nothing_is_changed_without_reach_or_where_every_step_is_a_seam():
    path = np.random.default_rng(1).normal(size=(2, 9, 3))
    assert smoothed(path, 4, 0.0) is path and smoothed(path, 1, 5.0) is path


def test_planners_smooth_the_places_of_their_plans_and_keep_what_they_were():
    plain, smooth = (small(DiffusionPlanner, **kw)(STARTS, GOALS, 12, np.random.default_rng(0))
                     for kw in ({}, {"smooth": 1.5}))
    path = np.concatenate([STARTS[:, None, :2], plain.states[..., :2]], axis=1)
    stack = LAYOUT["stack"]
    np.testing.assert_array_equal(smooth.states[..., :2], smoothed(path, stack, 1.5 * stack)[:, 1:])
    np.testing.assert_array_equal(smooth.states[..., 2:], plain.states[..., 2:])
    np.testing.assert_array_equal(smooth.raw, plain.states)
    assert plain.raw is None and (smooth.states[..., :2] != plain.states[..., :2]).any()
    with pytest.raises(ValueError, match="smooth=-1"):
        small(DiffusionPlanner, smooth=-1.0)
