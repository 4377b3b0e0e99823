"""Laws of the scripted driver, D4RL's scores and the dataset generator."""

import dataclasses

import numpy as np
import pytest

from dforce.envs import (
    MAZES,
    BatchedMaze,
    WaypointController,
    dynamics,
    generate,
    maze_from_text,
    maze_reward,
    normalized_score,
)
from dforce.envs.maze.controller import next_cells
from dforce.envs.maze.grid import MOVES

D4RL_NAMES = ["umaze", "medium", "large"]

# --- the driver and the scores ----------------------------------------------------------------------------------------


def q_policy(maze, target):
    """D4RL's planner: 50 rounds of tabular Q-iteration, gamma .99, reward 1 for arriving at (or staying on) target."""
    value = np.zeros(maze.walls.shape)
    for _ in range(50):
        q = {}
        for i, j in map(tuple, maze.free_cells):
            after = [(i + di, j + dj) if not maze.walls[i + di, j + dj] else (i, j) for di, dj in MOVES]
            q[i, j] = [(float(cell == target) + 0.99 * value[cell], cell) for cell in after]
        value = np.zeros_like(value)
        for cell, choices in q.items():
            value[cell] = max(choices, key=lambda choice: choice[0])[0]
    return {cell: max(choices, key=lambda choice: choice[0])[1] for cell, choices in q.items()}


@pytest.mark.parametrize("name", ["umaze", "medium"])
def test_paths_equal_d4rls_value_iteration(name):
    maze = MAZES[name]
    table, columns = next_cells(maze), maze.walls.shape[1]
    for target in map(tuple, maze.free_cells):
        for (i, j), cell in q_policy(maze, target).items():
            assert tuple(table[target[0] * columns + target[1], i * columns + j]) == cell


def drive(maze, n, policy, seed=0):
    env, rng = BatchedMaze(maze, n), np.random.default_rng(seed)
    obs, total = env.reset(rng), np.zeros(n)
    for _ in range(env.maze.max_steps):
        obs, reward = env.step(policy(obs, env.goal, rng))
        total += reward
    return total


@pytest.mark.parametrize("name,low,high", [("umaze", 135, 146), ("medium", 153, 168), ("large", 197, 217)])
def test_replanned_controller_scores_above_the_reference(name, low, high):
    controller = WaypointController(name, 400, np.random.default_rng(1))
    returns = drive(name, 400, lambda obs, goal, rng: controller.act(obs, goal))
    assert returns.min() > 0
    assert low < normalized_score(MAZES[name], returns.mean()) < high


@pytest.mark.parametrize("name,raw", [("umaze", 28.7), ("medium", 16.8), ("large", 14.3)])
def test_random_actions_score_near_zero(name, raw):
    returns = drive(name, 600, lambda obs, goal, rng: rng.uniform(-1, 1, goal.shape))
    assert abs(returns.mean() - raw) < 8                                    # raw +- 3.3 at 300 episodes
    assert -5 < normalized_score(MAZES[name], returns.mean()) < 10


def test_controller_forgotten_between_episodes_is_the_references_flaw():
    controller, rng = WaypointController("umaze", 200, np.random.default_rng(1)), np.random.default_rng(2)
    env, scores = BatchedMaze("umaze", 200), []
    for forget in (False, True, False):
        if forget:
            controller.reset()
        obs, total = env.reset(rng), 0.0
        for _ in range(300):
            obs, reward = env.step(controller.act(obs, env.goal))
            total += reward.mean()
        scores.append(normalized_score(env.maze, total))
    assert scores[0] > 130 and scores[1] > 130 and scores[2] < 125          # D4RL's ref_max is 100 by definition


def test_controller_plans_again_for_the_rows_whose_goal_changed():
    controller = WaypointController("umaze", 2, np.random.default_rng(0))
    obs, goal = np.array([[3.0, 1, 0, 0], [3.0, 1, 0, 0]]), np.array([[1.0, 1], [1.0, 1]])
    controller.act(obs, goal)
    before = controller.waypoint.copy()
    goal[1] = (3.0, 1.05)
    controller.act(obs, goal)
    np.testing.assert_array_equal(controller.waypoint[0], before[0])
    np.testing.assert_array_equal(controller.waypoint[1], goal[1])
    assert (np.array([3, 2]) - before[0]).min() >= 0 and (np.array([3, 2]) - before[0]).max() <= 0.2
    with pytest.raises(ValueError, match="in a wall"):
        controller.act(obs, np.array([[2.0, 1], [1.0, 1]]))


def test_scores_of_the_references_are_0_and_100():
    for maze in MAZES.values():
        np.testing.assert_allclose(normalized_score(maze, np.array([maze.ref_min, maze.ref_max])), [0, 100])
        assert normalized_score(maze, maze.dense_ref_max, dense=True) == pytest.approx(100)
    with pytest.raises(ValueError, match="report the raw return"):
        normalized_score(maze_from_text("###/#O#/###"), 3.0)
    assert MAZES["umaze"].ref_max == 161.86 and MAZES["large"].dense_ref_min == 30.56904


# --- the generator ----------------------------------------------------------------------------------------------------

# Means and deviations of the released maze2d-v1 files, as published with the paper's code: position mean and std,
# velocity std, action std, reward mean; then the number of transitions.
RELEASED = {"umaze": ((1.9328, 2.3745), (0.8997, 0.7093), (2.2129, 2.4682), (0.7043, 0.7506), 0.08125, 1_000_000),
            "medium": ((3.5093, 3.4766), (1.3371, 1.5210), (2.3408, 2.3694), (0.7398, 0.7459), 0.02367, 2_000_000),
            "large": ((3.7296, 5.3047), (1.8070, 2.5688), (2.4369, 2.6494), (0.7249, 0.7395), 0.00892, 4_000_000)}


def compare_with_released(name, runs, *, mean, std, reward):
    """Statistics averaged over `runs`. Seeds alone move the mean reward by 1.6 to 4%, the deviations by 0.1 to 0.4%."""
    rows = [np.concatenate([data["observations"][:, :-1].mean((0, 1))[:2], data["observations"][:, :-1].std((0, 1)),
                            data["actions"].std((0, 1)), data["rewards"].mean((0, 1), keepdims=True)[0]])
            for data in runs]
    mine, (position_mean, position_std, speed_std, action_std, reward_mean, _) = np.mean(rows, 0), RELEASED[name]
    np.testing.assert_allclose(mine[:2], position_mean, atol=mean)
    np.testing.assert_allclose(mine[2:8], position_std + speed_std + action_std, rtol=std)
    assert mine[8] == pytest.approx(reward_mean, rel=reward)


@pytest.mark.slow
def test_generator_has_the_statistics_of_the_released_umaze():
    data = generate("umaze", steps=400_000, chains=400, seed=0)
    compare_with_released("umaze", [data], mean=0.03, std=0.025, reward=0.09)
    assert np.abs(data["actions"].mean((0, 1)) * 1e3 - (1.54, 4.34)).max() < 1.5
    changes = (np.diff(data["goals"], axis=1) != 0).any(-1).sum() * 7 / 6       # 1 of 7 draws repeats the cell
    assert changes / 0.4 == pytest.approx(12_459, rel=0.03)                     # in 1M steps of the released file


@pytest.mark.slow
@pytest.mark.parametrize("name", D4RL_NAMES)
def test_generator_has_the_statistics_of_the_released_files_at_full_size(name):
    runs = [generate(name, steps=RELEASED[name][-1], chains=200, seed=seed) for seed in range(3)]
    compare_with_released(name, runs, mean=0.07, std=0.015, reward=0.06)


def test_clean_generator_matches_d4rls_script_without_noise():
    data = generate("umaze", steps=200_000, chains=200, noise=0.0, seed=0)
    np.testing.assert_allclose(data["actions"].std((0, 1)), (0.6802, 0.7720), rtol=0.02)
    np.testing.assert_allclose(data["observations"].std((0, 1))[:2], (0.8766, 0.6610), rtol=0.03)


def test_generated_transitions_are_the_dynamics_and_rewards_of_the_next_observation():
    data, maze = generate("medium", steps=6000, chains=20, seed=3), MAZES["medium"]
    obs, actions = data["observations"], data["actions"]
    assert obs.shape == (20, 301, 4) and actions.shape == data["goals"].shape == (20, 300, 2)
    assert data["rewards"].shape == (20, 300) and np.abs(actions).max() <= 1
    step = dynamics(maze, obs[:, :-1].reshape(-1, 4), actions.reshape(-1, 2))
    np.testing.assert_allclose(obs[:, 1:].reshape(-1, 4), step, atol=1e-15)
    np.testing.assert_array_equal(data["rewards"], maze_reward(obs[:, 1:, :2], maze.goal))
    changed = (np.diff(data["goals"], axis=1) != 0).any(-1)
    reached = np.linalg.norm(obs[:, :-2, :2] - data["goals"][:, :-1], axis=-1) < 0.1
    assert changed.sum() > 10 and reached[changed].all()
    again = generate("medium", steps=6000, chains=20, seed=3)
    other = generate("medium", steps=6000, chains=20, seed=4)
    np.testing.assert_array_equal(obs, again["observations"])
    assert np.abs(obs - other["observations"]).max() > 0.1


def test_generator_gives_up_a_target_after_the_step_limit():
    maze = dataclasses.replace(MAZES["large"], max_steps=5)
    goals = generate(maze, steps=40 * 100, chains=40, seed=0)["goals"]
    lengths = np.diff(np.flatnonzero((np.diff(goals[0], axis=0) != 0).any(-1)))
    assert lengths.max() <= 3 * 6                                           # a redraw may hit the same cell


@pytest.mark.parametrize("wrong", [{"steps": 10, "chains": 3}, {"steps": 0, "chains": 1}, {"steps": 5, "noise": -1.0}])
def test_generator_refuses_impossible_sizes(wrong):
    with pytest.raises(ValueError, match="want|multiple"):
        generate("umaze", **{"chains": 1, **wrong})
