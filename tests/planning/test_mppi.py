"""MPPI: its weights are a softmax, its step solves a linear problem, it drives where nothing is in the way."""

from __future__ import annotations

import numpy as np
import pytest

from dforce.envs import as_world, dynamics, get_maze
from dforce.planning.baselines.drivers import random_driver, run_driver
from dforce.planning.baselines.mppi import correlated, goal_distance, improve, mppi, weights, world_dynamics
from tests.planning.test_cloning import OPEN


def test_weights_are_the_softmax():
    rng = np.random.default_rng(0)
    cost = 50 * rng.random((3, 7))
    wanted = np.exp(-cost / 2.5) / np.exp(-cost / 2.5).sum(1, keepdims=True)
    np.testing.assert_allclose(weights(cost, 2.5), wanted, rtol=1e-12)
    assert np.isfinite(weights(cost + 1e6, 1e-3)).all()           # however large the costs
    np.testing.assert_allclose(weights(cost, 1e-6), np.eye(7)[cost.argmin(1)])   # cold: the best alone
    np.testing.assert_allclose(weights(cost, 1e9), 1 / 7, rtol=1e-6)             # hot: the plain mean


def test_a_round_finds_the_tilted_mean():
    """Gaussian actions weighed by exp(-g a / T) have the mean nominal - std^2 g / T, in closed form."""
    rng, std, slope, temperature = np.random.default_rng(1), 0.1, np.array([0.6, -0.3]), 0.5
    nominal = np.array([[[0.1, 0.2], [-0.1, 0.0]]])
    found = improve(lambda state, action: action, lambda state, goal: state @ slope, np.zeros((1, 2)), np.zeros((1, 2)),
                    nominal, std * rng.standard_normal((1, 200_000, 2, 2)), temperature=temperature)
    np.testing.assert_allclose(found, nominal - std**2 * slope / temperature, atol=2e-3)


def test_actions_stay_in_range_and_the_stepper_is_the_simulator():
    rng = np.random.default_rng(2)
    maze = get_maze("umaze")
    state = np.array([[1.0, 1, 0, 0], [3.0, 1, 0, 0]])
    seen = []

    def spy(state, action):
        seen.append(action)
        return true(state, action)

    true = world_dynamics(OPEN, 10)
    found = improve(spy, goal_distance, state, state[:, :2] + 3, np.full((2, 4, 2), 0.9), rng.normal(size=(2, 5, 4, 2)),
                    temperature=1.0)
    assert np.abs(found).max() <= 1 and np.abs(seen).max() <= 1 and len(seen) == 4
    action = rng.uniform(-1, 1, (2, 2))
    np.testing.assert_array_equal(world_dynamics(as_world(maze), 2)(state, action), dynamics(maze, state, action))


def test_noise_keeps_its_variance_and_has_the_correlation():
    made = correlated(np.random.default_rng(3).standard_normal((1, 20_000, 6, 1)), 0.8)[0, :, :, 0]
    np.testing.assert_allclose(np.cov(made.T), 0.8 ** np.abs(np.subtract.outer(range(6), range(6))), atol=0.04)


def test_it_reaches_the_goal_of_a_free_double_integrator():
    rng = np.random.default_rng(4)
    start = np.concatenate([rng.uniform(1, 1.2, (8, 2)), np.zeros((8, 2))], 1)
    goal = np.array([3.0, 5.0])
    driver = mppi(OPEN, horizon=15, samples=64, temperature=0.3, noise=0.5)
    played = run_driver(OPEN, driver, start, goal, steps=60)
    assert played.success.all()
    assert played.rewards[:, 40:].mean() > 0.95                   # and stays there
    assert np.linalg.norm(played.trajectory[:, -1, :2] - goal, axis=1).max() < 0.3
    assert not run_driver(OPEN, random_driver, start, goal, steps=60).success.any()


def test_refusals():
    for wrong in ({"horizon": 0}, {"samples": 0}, {"temperature": 0.0}, {"noise": 0.0}, {"smooth": 1.0}):
        with pytest.raises(ValueError, match="want horizon and samples >= 1"):
            mppi(OPEN, **wrong)
