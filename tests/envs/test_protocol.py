"""What is asked of a world (`Env`): mazes of all frames answer alike."""

import numpy as np
import pytest

from dforce.envs import World, as_world, get_maze


def world(name: str) -> World:
    if name == "maze2d":
        return as_world(get_maze("medium"))
    if name == "pointmaze":
        pytest.importorskip("gymnasium_robotics")
        from dforce.envs.maze.pointmaze import pointmaze

        return pointmaze("medium")
    pytest.importorskip("ogbench")
    from dforce.envs.maze.ogbench import ogbench

    return ogbench("medium")


@pytest.fixture(params=["maze2d", "pointmaze", "ogbench"])
def env(request) -> World:
    return world(request.param)


def starts(env: World, n: int) -> tuple[np.ndarray, np.ndarray]:
    maze = env.maze
    cells = maze.free_cells[np.random.default_rng(0).integers(len(maze.free_cells), size=n)]
    start = np.zeros((n, env.observation_width))
    start[:, :2] = maze.frame.position(cells)
    return start, start[:, :2].copy()


def test_copies_begin_at_their_starts_and_are_stepped_in_widths_of_the_world(env):
    start, goal = starts(env, 5)
    copies = env.copies(5)
    np.testing.assert_array_equal(copies.begin(start, goal), start)
    observation, reward = copies.step(np.zeros((5, env.action_width)))
    assert observation.shape == (5, env.observation_width) and reward.shape == (5,)
    assert env.position(observation).shape == goal.shape == (5, env.goal_width)
    np.testing.assert_array_equal(start[:, :2], goal)  # what was given is not stepped


def test_an_episode_has_arrived_where_it_is_rewarded(env):
    start, goal = starts(env, 64)
    copies, rng = env.copies(64), np.random.default_rng(1)
    radius = env.maze.frame.goal_radius
    copies.begin(start, goal + rng.uniform(-1.2, 1.2, goal.shape) * radius)
    seen = []
    for _ in range(20):
        observation, reward = copies.step(rng.uniform(-1, 1, (64, 2)))
        np.testing.assert_array_equal(env.arrived(observation, copies.goal), reward > 0)
        seen.append(reward > 0)
    assert 0.1 < np.mean(seen) < 0.9


def test_a_world_refuses_walls_and_draws_its_ball(env):
    start, goal = starts(env, 2)
    env.check(start, goal)
    wall = env.maze.frame.position(np.zeros(2))
    with pytest.raises(ValueError, match="goal .* not in a free cell of maze .*medium"):
        env.check(start, np.stack([goal[0], wall]))
    assert env.name == env.maze.name and env.max_steps == env.maze.max_steps
    picture, pixels = env.draw(start[0], goal[0]), 32
    assert picture.shape == (*(pixels * np.array(env.maze.walls.shape)), 3)
    row, column = (pixels * (env.maze.cell(goal[0]) + 0.5)).astype(int)
    assert tuple(picture[row, column]) == (40, 90, 200)  # the ball is in the middle of its cell, in every frame
