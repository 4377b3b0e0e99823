"""Laws of the maze environments: one dynamics in two engines, D4RL's task, grids of one's own."""

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import dforce.envs  # noqa: F401  (registers the environments)
from dforce.envs import (
    MAZES,
    BatchedMaze,
    MazeEnv,
    draw_maze,
    dynamics,
    get_maze,
    maze_from_text,
    maze_reward,
    sample_goals,
    sample_starts,
)


def contact_rich_states(maze, n, rng):
    """States [n, 4]: a third anywhere in a cell, a third at walls, a third at the seams and corners of walls."""
    offset = rng.uniform(-0.47, 0.47, (n, 2))
    edge = np.sign(offset) * rng.uniform(0.38, 0.47, (n, 2))
    kind = rng.integers(3, size=n)[:, None]
    offset[:, :1] = np.where(kind >= 1, edge, offset)[:, :1]
    offset[:, 1:] = np.where(kind == 2, edge, offset)[:, 1:]
    cells = maze.free_cells[rng.integers(len(maze.free_cells), size=n)]
    return np.concatenate([cells - 0.2 + offset, rng.uniform(-5.6, 5.6, (n, 2))], 1)


# --- dynamics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MAZES))
def test_one_step_equals_mujoco(name):
    maze, env, rng = MAZES[name], MazeEnv(name), np.random.default_rng(0)
    states, actions = contact_rich_states(maze, 1500, rng), rng.uniform(-1.3, 1.3, (1500, 2))
    expected, contacts = np.empty_like(states), np.zeros(len(states), int)
    env.reset(seed=0)
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        env.set_state(state)
        expected[i] = env.step(action)[0]
        contacts[i] = env.data.ncon
    assert (contacts == 1).sum() > 100 and (contacts == 2).sum() > 50 and (contacts == 3).sum() > 5
    np.testing.assert_allclose(dynamics(maze, states, actions), expected, atol=1e-11)


def test_a_whole_episode_equals_mujoco():
    env, batch, rng = MazeEnv("umaze"), BatchedMaze("umaze", 1), np.random.default_rng(3)
    env.reset(seed=0, options={"start": (3, 1)})
    batch.state = np.array([[3.0, 1.0, 0.0, 0.0]])
    touched, gap = 0, 0.0
    for t in range(150):
        if t % 15 == 0:
            action = rng.uniform(-1, 1, 2)
        mine, _ = batch.step(action[None])
        obs, *_ = env.step(action)
        touched += env.data.ncon > 0
        gap = max(gap, np.abs(obs - mine[0]).max())
    assert touched > 20 and gap < 1e-9


def test_contact_margin_is_two_millimetres_whatever_the_mujoco_version():
    env = MazeEnv("umaze")
    for distance, touching in ((0.0019, True), (0.0021, False)):
        env.reset(seed=0, options={"start": (1.2 - distance, 1.0 - 0.2)})
        assert (env.data.ncon == 1) == touching
    env.set_state([1.2, 0.8, 0, 0])
    assert env.data.contact[0].includemargin == pytest.approx(0.002) and env.data.contact[0].dim == 1


def test_free_flight_has_d4rl_mass_damping_and_speed_limit():
    mass = 4.18879020
    after = dynamics(MAZES["open"], np.array([[2.0, 3.0, 9.0, -1.0]]), np.array([[1.0, -4.0]]))[0]
    vx = 5.0 + 0.01 * (100 - 5.0) / (mass + 0.01)
    vy = -1.0 + 0.01 * (-100 + 1.0) / (mass + 0.01)
    np.testing.assert_allclose(after, [2 + 0.01 * vx, 3 + 0.01 * vy, vx, vy], atol=1e-9)
    assert env_mass() == pytest.approx(mass, abs=1e-7)


def env_mass():
    env = MazeEnv("open")
    return env.model.body_mass[mujoco.mj_name2id(env.model, mujoco.mjtObj.mjOBJ_BODY, "ball")]


def test_balls_never_leave_the_free_cells():
    maze, rng = MAZES["large"], np.random.default_rng(0)
    env = BatchedMaze(maze, 500)
    env.reset(rng)
    for t in range(300):
        if t % 20 == 0:
            action = rng.uniform(-1.5, 1.5, (500, 2))
        env.step(action)
        assert maze.is_free(env.state[:, :2]).all()
    assert np.abs(env.state[:, 2:]).max() < 5.25


def test_dynamics_leaves_its_arguments_alone_and_rows_do_not_mix():
    maze, rng = MAZES["umaze"], np.random.default_rng(1)
    states, actions = contact_rich_states(maze, 64, rng), rng.uniform(-1, 1, (64, 2))
    kept = states.copy(), actions.copy()
    together = dynamics(maze, states, actions)
    alone = np.concatenate([dynamics(maze, s[None], a[None]) for s, a in zip(states, actions, strict=True)])
    np.testing.assert_array_equal(states, kept[0])
    np.testing.assert_array_equal(actions, kept[1])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-15)


# --- the task ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(MAZES))
@pytest.mark.parametrize("suffix", ["", "-dense"])
def test_registered_environments_pass_gymnasium_checks(name, suffix):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*observation space (minimum|maximum).*infinity.*")
        env = gymnasium.make(f"dforce/maze2d-{name}{suffix}-v1", render_mode="rgb_array")
        check_env(env.unwrapped)
    assert env.unwrapped.dense == bool(suffix)


@pytest.mark.parametrize("name,steps", [("open", 150), ("umaze", 300), ("medium", 600), ("large", 800)])
def test_episodes_are_truncated_at_the_step_limit_and_never_terminate(name, steps):
    env = gymnasium.make(f"dforce/maze2d-{name}-v1")
    env.reset(seed=0, options={"start": MAZES[name].goal})
    for t in range(steps):
        _, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
        assert reward == 1 and info["success"] and not terminated and truncated == (t == steps - 1)


def test_reset_law():
    maze = MAZES["umaze"]
    states = sample_starts(maze, 20_000, np.random.default_rng(0))
    cells = np.rint(states[:, :2])
    counts = np.array([(cells == cell).all(1).sum() for cell in maze.free_cells])
    assert counts.sum() == 20_000 and len(counts) == 7                    # the goal's cell (1, 1) is among them
    assert np.abs(counts / 20_000 - 1 / 7).max() < 0.012
    jitter = states[:, :2] - cells
    assert np.abs(jitter).max() <= 0.1 and jitter.std() == pytest.approx(0.1 / 3**0.5, rel=0.02)
    assert states[:, 2:].std() == pytest.approx(0.1, rel=0.02)


def test_seed_fixes_reset_and_options_set_start_and_goal():
    env = MazeEnv("medium")
    first, _ = env.reset(seed=7)
    again, info = env.reset(seed=7)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(info["goal"], (6, 6))
    obs, info = env.reset(seed=7, options={"start": (1, 2), "goal": (3.1, 2.0)})
    np.testing.assert_array_equal(obs, (1, 2, 0, 0))
    np.testing.assert_array_equal(info["goal"], (3.1, 2.0))
    goals = np.array([env.reset(options={"goal": "random"})[1]["goal"] for _ in range(100)])
    assert env.maze.is_free(goals).all() and len(np.unique(np.rint(goals), axis=0)) > 15
    with pytest.raises(ValueError, match="not a point"):
        env.reset(options={"start": (0, 0)})
    with pytest.raises(ValueError, match="unknown reset options"):
        env.reset(options={"target": (1, 1)})


def test_reward_is_of_the_next_state_within_half_a_metre():
    position = np.array([[1.0, 1.5], [1.0, 1.5001], [1.4, 1.3], [1.4, 1.31]])
    np.testing.assert_array_equal(maze_reward(position, (1, 1)), [1, 0, 1, 0])
    np.testing.assert_allclose(maze_reward(position, (1, 1), dense=True)[:2], np.exp([-0.5, -0.5001]))
    for dense in (False, True):
        batch, env = BatchedMaze("umaze", 1, dense=dense), MazeEnv("umaze", dense=dense)
        env.reset(seed=0)
        batch.state = np.array([[1.0, 1.51, 0.0, -4.0]])                   # outside now, inside after the step
        env.set_state(batch.state[0])
        _, reward = batch.step(np.zeros((1, 2)))
        assert env.step(np.zeros(2))[1] == pytest.approx(reward[0]) and (dense or reward[0] == 1)


def test_batched_reset_takes_goals_and_refuses_bad_ones():
    env, rng = BatchedMaze("umaze", 3), np.random.default_rng(0)
    env.reset(rng)
    np.testing.assert_array_equal(env.goal, [(1, 1)] * 3)
    goal = sample_goals(env.maze, 3, rng)
    env.reset(rng, goal)
    np.testing.assert_array_equal(env.goal, goal)
    with pytest.raises(ValueError, match="in a wall"):
        env.reset(rng, np.array([[1, 1], [2, 1], [1, 1]]))
    with pytest.raises(ValueError, match=r"want \(3, 2\)"):
        env.reset(rng, goal[:2])
    with pytest.raises(ValueError, match=r"want \(3, 2\)"):
        env.step(np.zeros(2))


def test_render_shows_ball_goal_and_walls_where_they_are():
    env = MazeEnv("umaze", render_mode="rgb_array")
    env.reset(seed=0, options={"start": (2.8, 1.8)})                       # the centre of cell (3, 2)
    image = env.render()
    assert image.shape == (5 * 32, 5 * 32, 3) and image.dtype == np.uint8
    ball, wall, floor = image[3 * 32 + 16, 2 * 32 + 16], image[2 * 32 + 16, 32 + 16], image[3 * 32 + 16, 32 + 8]
    assert ball[2] > 150 > ball[0] and wall.max() < 100 and floor.min() > 200
    np.testing.assert_array_equal(image, draw_maze(env.maze, (2.8, 1.8), (1, 1)))
    with pytest.raises(ValueError, match="rgb_array"):
        MazeEnv("umaze", render_mode="human")


# --- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text,message", [("####/#OO#/###", "not rectangular: row 2"),
                                          ("####/#OOO/####", r"not closed by walls: border cell \(row 1, column 3\)"),
                                          ("####/#OX#/####", "unknown character 'X' in row 1, column 2"),
                                          ("####/####", "no free cell"), ("", "no free cell"),
                                          ("#####/#O#O#/#####", r"not connected: cell \(1, 3\)"),
                                          ("#####/#GOG#/#####", "marks 2 goals")])
def test_bad_grids_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        maze_from_text(text)


def test_own_grid_runs_in_both_engines():
    text = """
        ######
        #OO#O#
        #GOOO#
        ######
    """
    maze = get_maze(text)
    assert maze.goal == (2, 1) and maze.walls.shape == (4, 6) and len(maze.free_cells) == 7
    assert maze_from_text("####/#OO#/####").goal == (1, 2)
    assert maze_from_text(text, goal=(1, 4), max_steps=50).goal == (1, 4)
    batch, rng = BatchedMaze(maze, 50), np.random.default_rng(0)
    batch.reset(rng)
    assert max(batch.step(rng.uniform(-1, 1, (50, 2)))[1].max() for _ in range(100)) == 1
    assert maze.is_free(batch.state[:, :2]).all()
    env = gymnasium.make("dforce/maze2d-umaze-v1", maze=text, max_steps=3)
    env.reset(seed=0)
    assert [env.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]


def test_unknown_maze_and_bad_goal_say_what_exists():
    with pytest.raises(ValueError, match=r"unknown maze 'tiny'.*large.*umaze"):
        get_maze("tiny")
    with pytest.raises(ValueError, match=r"goal \(0, 0\).*not a free cell"):
        maze_from_text("####/#OO#/####", goal=(0, 0))
    with pytest.raises(ValueError, match="max_steps is 0"):
        maze_from_text("####/#OO#/####", max_steps=0)
