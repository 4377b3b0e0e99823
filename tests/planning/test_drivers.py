"""The reference drivers against their known scores, and retrieval against a brute-force search."""

import numpy as np
import pytest

from dforce.envs import generate, get_maze, normalized_score
from dforce.planning.baselines.drivers import (
    controller_driver,
    random_driver,
    retrieval_planner,
    run_driver,
    steps_to_goal,
    straight_driver,
)
from dforce.planning.control import run_episodes, tracking
from dforce.planning.scores import fresh_starts

UMAZE = get_maze("umaze")
GOAL = np.array(UMAZE.goal, dtype=float)


@pytest.fixture(scope="module")
def starts():
    return fresh_starts(UMAZE, 300, seed=7)


@pytest.fixture(scope="module")
def data():
    return generate(UMAZE, steps=200_000, chains=200)


def test_straight_driving_scores_106_without_learning_anything(starts):
    done = run_driver(UMAZE, straight_driver, starts, GOAL)
    assert normalized_score(UMAZE, done.returns.mean()) == pytest.approx(106, abs=16)  # 500 starts gave 106.1 +- 8.3
    assert done.success.mean() == pytest.approx(0.63, abs=0.08)


def test_controller_scores_145_and_101_on_blocked_starts(starts):
    done = run_driver(UMAZE, controller_driver(UMAZE), starts, GOAL)
    blocked = ~run_driver(UMAZE, straight_driver, starts, GOAL).success
    assert done.success.all()
    assert normalized_score(UMAZE, done.returns.mean()) == pytest.approx(145, abs=9)
    assert normalized_score(UMAZE, done.returns[blocked].mean()) == pytest.approx(101.5, abs=6)


def test_random_driving_scores_about_zero(starts):
    done = run_driver(UMAZE, random_driver, starts, GOAL, seed=1)
    assert abs(normalized_score(UMAZE, done.returns.mean())) < 12
    again = run_driver(UMAZE, random_driver, starts, GOAL, seed=1)
    np.testing.assert_array_equal(done.trajectory, again.trajectory)
    assert done.actions.min() >= -1 and done.actions.max() <= 1


def test_steps_to_goal_by_hand():
    x = np.array([[0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1]], dtype=float)
    observations = np.zeros((2, 6, 4))
    observations[..., 0] = x
    wait = steps_to_goal(observations, np.array([1.0, 0.0]), 0.1).reshape(2, 5)
    assert wait[0].tolist() == [1, 0, 1, 0, 0]
    assert wait[1].tolist() == [5, 4, 3, 2, 1]
    assert (steps_to_goal(observations, np.array([7.0, 0.0]), 0.1) > 10**9).all()


@pytest.mark.parametrize("slack", [0.0, 0.3])
def test_retrieval_equals_brute_force(data, slack):
    observations, actions = data["observations"][:20], data["actions"][:20]
    horizon, query = 120, fresh_starts(UMAZE, 12, seed=3)
    plan = retrieval_planner(observations, actions, horizon=horizon, slack=slack)(
        query, np.tile(GOAL, (12, 1)), 150, np.random.default_rng(0)
    )
    scale = observations.reshape(-1, 4).std(axis=0)
    wait = steps_to_goal(observations, GOAL, 0.4)
    points = observations[:, :-1].reshape(-1, 4)
    for episode in range(12):
        distance = np.linalg.norm((points - query[episode]) / scale, axis=1)
        distance[wait > horizon] = np.inf
        pool = np.flatnonzero(distance <= distance.min() + slack)
        index = min(pool, key=lambda m: (wait[m], distance[m]))
        chain, first = divmod(index, actions.shape[1])
        length = wait[index]
        replayed = slice(first, first + length)
        np.testing.assert_array_equal(plan.states[episode, :length], observations[chain, 1:][replayed])
        np.testing.assert_array_equal(plan.actions[episode, :length], actions[chain, replayed])
        rest = np.tile([*GOAL, 0, 0], (150 - length, 1))
        np.testing.assert_array_equal(plan.states[episode, length:], rest)


def test_retrieval_serves_each_episode_its_own_goal_and_is_cut_to_what_remains(data):
    goals = np.array([[1.0, 1.0], [3.0, 1.0], [1.0, 1.0]])
    query = np.tile([3.0, 3.0, 0.0, 0.0], (3, 1))
    planner = retrieval_planner(data["observations"], data["actions"], horizon=300)
    plan = planner(query, goals, 280, np.random.default_rng(0))
    np.testing.assert_array_equal(plan.states[:, -1, :2], goals)
    np.testing.assert_array_equal(plan.states[0], plan.states[2])
    short = planner(query, goals, 5, np.random.default_rng(0))
    np.testing.assert_array_equal(short.states, plan.states[:, :5])


@pytest.mark.slow
def test_retrieval_solves_the_blocked_starts(starts, data):
    planner = retrieval_planner(data["observations"], data["actions"], horizon=UMAZE.max_steps)
    chosen = starts[:100]
    done = run_episodes(UMAZE, planner, tracking(), chosen, GOAL)
    straight = run_driver(UMAZE, straight_driver, chosen, GOAL)
    assert done.success.mean() > 0.97
    assert normalized_score(UMAZE, done.returns[~straight.success].mean()) > 85


def test_bad_demonstrations_are_answered(data):
    observations, actions = data["observations"][:2, :11], data["actions"][:2, :10]
    with pytest.raises(ValueError, match="actions must be"):
        retrieval_planner(observations, actions[:, :-1], horizon=10)
    with pytest.raises(ValueError, match="observations must be"):
        retrieval_planner(observations[0], actions, horizon=10)
    with pytest.raises(ValueError, match="horizon"):
        retrieval_planner(observations, actions, horizon=0)
    broken = observations.copy()
    broken[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        retrieval_planner(broken, actions, horizon=10)


@pytest.mark.parametrize("slack", [0.0, 0.5])
def test_where_no_demonstration_arrives_the_closest_pass_is_replayed(data, slack):
    observations, actions = data["observations"][:20], data["actions"][:20]
    horizon, query, far = 40, fresh_starts(UMAZE, 6, seed=4), np.array([50.0, 50.0])
    plan = retrieval_planner(observations, actions, horizon=horizon, slack=slack)(
        query, np.tile(far, (6, 1)), 60, np.random.default_rng(0))
    scale, points = observations.reshape(-1, 4).std(axis=0), observations[:, :-1].reshape(-1, 4)
    for episode in range(6):
        distance = np.linalg.norm((points - query[episode]) / scale, axis=1)
        passes = []
        for index in np.flatnonzero(distance <= distance.min() + slack):
            chain, first = divmod(int(index), actions.shape[1])
            places = observations[chain, first:first + horizon + 1, :2]
            passes.append(np.linalg.norm(places - far, axis=1).min())
        rests = plan.states[episode, -1, :2]
        np.testing.assert_allclose(np.linalg.norm(rests - far), min(passes))
        moving = np.abs(plan.states[episode, :, :2] - rests).sum(1) > 0
        assert not moving[horizon:].any()
