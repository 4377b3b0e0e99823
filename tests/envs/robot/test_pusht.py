"""PushT: the coverage is an area, the block is pushed and not thrown, the planned expert reaches the goal."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dforce.data.generate.robot import make_task
from dforce.envs.robot.pusht import PushTEnv
from dforce.envs.robot.pusht_block import CENTRE, GOAL, coverage, goal_pose, outline
from dforce.envs.robot.pusht_expert import clearance


@pytest.fixture(scope="module")
def env() -> PushTEnv:
    return make_task("pusht")


def inside(points: np.ndarray, pose: np.ndarray) -> np.ndarray:
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    local = (points - pose[:2]) @ np.array([[cosine, -sine], [sine, cosine]])
    return np.array([clearance(point) == 0 for point in local])


def test_coverage_is_the_common_area() -> None:
    """Against points drawn in the goal; and exactly for a shift along a side."""
    goal, rng = goal_pose(), np.random.default_rng(0)
    assert coverage(goal) == pytest.approx(1)
    assert coverage(goal + [0.3, 0, 0]) == pytest.approx(0)
    points = rng.uniform(goal[:2] - 0.1, goal[:2] + 0.1, (6000, 2))
    points = points[inside(points, goal)]
    for shift in ([0.01, -0.02, 0.3], [0.03, 0.01, -2.0], [0, 0, np.pi]):
        assert coverage(goal + shift) == pytest.approx(inside(points, goal + shift).mean(), abs=0.05)


def test_geometry_and_goal_are_gym_pushts() -> None:
    """Bar 120 x 30, stem 30 x 90 pixels of a millimetre; the goal is the bar's outer edge at (256, 256), 45 degrees."""
    bar, stem = outline(np.zeros(3))
    assert np.ptp(bar, 0) == pytest.approx([0.12, 0.03]) and np.ptp(stem, 0) == pytest.approx([0.03, 0.09])
    assert bar[:, 1].max() == pytest.approx(stem[:, 1].min()) and bar[:, 1].min() == pytest.approx(-CENTRE)
    edge = outline(goal_pose())[0][:2].mean(0)
    assert edge == pytest.approx(GOAL[:2])


@pytest.mark.parametrize("observations", ["low_dim", "mixed"])
def test_gymnasium_finds_no_fault(observations: str, pictures: None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gymnasium.make("dforce/PushT-v0", observations=observations, image_size=32)
        check_env(made.unwrapped)
    made.close()


def test_the_block_stops_with_the_disc_and_states_go_on_bit_for_bit(env: PushTEnv) -> None:
    env.reset(seed=0)
    target = env.data.qpos[2:4].copy()
    for _ in range(40):
        env.step(target)
    assert np.linalg.norm(env.data.qpos[2:4] - target) > 0.005
    assert np.abs(env.data.qvel).max() < 0.01
    state, futures = env.get_state(), []
    for _ in range(2):
        futures.append([env.step(action)[:4] for action in np.random.default_rng(1).uniform(0, 0.5, (20, 2))])
        env.set_state(state)
    assert all(np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(*futures, strict=True))


@pytest.mark.slow
def test_the_planned_expert_reaches_the_goal(env: PushTEnv) -> None:
    env.reset(seed=0)
    for action in env.expert(np.random.default_rng(0), 3):
        observation, reward, _, truncated, info = env.step(action)
    assert info["success"] and info["success_held"] >= 3 and reward == 1 and not truncated
    assert np.abs(observation[2:4] - GOAL[:2]).max() < 0.004


@pytest.mark.slow
def test_the_planned_expert_succeeds_in_most_of_forty_episodes(env: PushTEnv) -> None:
    successes = 0
    for seed in range(40):
        env.reset(seed=72_000 + seed)
        for action in env.expert(np.random.default_rng(0), 0):
            *_, truncated, info = env.step(action)
            if truncated:
                break
        successes += info["success"]
    assert successes >= 36


def test_bad_input_is_named(env: PushTEnv) -> None:
    with pytest.raises(ValueError, match="two finite numbers"):
        env.step(np.array([np.inf, 0]))
    with pytest.raises(ValueError, match="low_dim, image, mixed"):
        PushTEnv(observations="pixels")
