"""PointMaze-v3 in batches: equal to the package's environment step by step, and in its frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dforce.data import load_episodes
from dforce.envs import dynamics, get_maze
from dforce.envs.maze.frame import Frame
from dforce.envs.maze.pointmaze import IDS, pointmaze, pointmaze_demonstrations, pointmaze_starts, real_pointmaze
from dforce.planning.baselines.drivers import controller_driver, run_driver, straight_in
from dforce.planning.scores import blocked_mask, score_report
from dforce.planning.tasks import get_task

pytest.importorskip("gymnasium_robotics")


@pytest.mark.parametrize("size", sorted(IDS))
def test_world_equals_the_real_environment_step_by_step(size: str) -> None:
    real, rng = [real_pointmaze(size) for _ in range(4)], np.random.default_rng(0)
    seen = [env.reset(seed=i)[0] for i, env in enumerate(real)]
    world = pointmaze(size).copies(4)
    world.state = np.stack([one["observation"] for one in seen])
    world.goal = np.stack([one["desired_goal"] for one in seen])
    world.goal[0] = seen[0]["achieved_goal"]  # so that one of them is rewarded at first, and then no more
    real[0].unwrapped.goal = world.goal[0].copy()
    rewards, touched, fast = [], 0, 0
    for t in range(150):
        if t % 25 == 0:  # long pushes, beyond the limits of action and speed: walls are hit, velocities clipped
            action = rng.uniform(-1.5, 1.5, (4, 2))
        state, reward = world.step(action)
        stepped = [env.step(one) for env, one in zip(real, action, strict=True)]
        np.testing.assert_allclose(state, [one[0]["observation"] for one in stepped], atol=1e-11)
        np.testing.assert_array_equal(reward, [one[1] for one in stepped])
        rewards.append(reward)
        touched += pointmaze(size).maze.near_wall(state[:, :2]).sum()
        fast += (np.abs(state[:, 2:]) > 4.9).sum()
    assert np.sum(rewards) > 0 and not np.all(rewards) and touched > 20 and fast > 0


@pytest.mark.parametrize("size", sorted(IDS))
def test_frame_and_limits_are_those_of_the_package(size: str) -> None:
    maze, real = pointmaze(size).maze, real_pointmaze(size)
    grid = real.unwrapped.maze
    np.testing.assert_array_equal(maze.walls, np.array(grid.maze_map) == 1)
    centres = [grid.cell_rowcol_to_xy(cell) for cell in maze.free_cells]
    np.testing.assert_allclose(maze.frame.position(maze.free_cells), centres, atol=1e-12)
    points = np.random.default_rng(0).uniform(-2, 2, (50, 2))
    np.testing.assert_array_equal(maze.cell(points), [grid.cell_xy_to_rowcol(point) for point in points])
    assert maze.max_steps == real.spec.max_episode_steps and maze.ref_min is None
    np.testing.assert_allclose(maze.frame.position(maze.frame.grid(points)), points, atol=1e-12)


def test_every_frame_is_a_bijection() -> None:
    points = np.random.default_rng(1).normal(size=(20, 2))
    for axes in (((1, 0), (0, 1)), ((0, 1), (-1, 0)), ((0, -1), (1, 0)), ((-1, 0), (0, -1))):
        frame = Frame(axes=axes, origin=(0.3, -2.0), unit=4.0)
        np.testing.assert_allclose(frame.position(frame.grid(points)), points, atol=1e-12)
        np.testing.assert_allclose(frame.grid(frame.position(points)), points, atol=1e-12)
    with pytest.raises(ValueError, match="two different axes"):
        Frame(axes=((1, 0), (1, 0)))


def test_dynamics_are_those_of_d4rl_but_for_frame_and_contact() -> None:
    """Away from walls one step equals the numpy stepper's in D4RL's frame, turned: rows are minus y, columns x."""
    world, maze, rng = pointmaze("medium"), get_maze("medium"), np.random.default_rng(2)
    cells = maze.free_cells[rng.integers(len(maze.free_cells), size=500)] + rng.uniform(-0.35, 0.35, (500, 2))
    velocity, action = rng.uniform(-6, 6, (500, 2)), rng.uniform(-1.2, 1.2, (500, 2))
    turned = lambda vector: np.stack([-vector[:, 1], vector[:, 0]], axis=1)  # noqa: E731  (x, y) -> (row, column)
    balls = world.copies(500)
    balls.state = np.concatenate([world.maze.frame.position(cells), velocity], axis=1)
    after = dynamics(maze, np.concatenate([cells - 0.2, turned(velocity)], axis=1), turned(action))
    state, _ = balls.step(action)
    np.testing.assert_allclose(world.maze.frame.grid(state[:, :2]), after[:, :2] + 0.2, atol=1e-12)
    np.testing.assert_allclose(turned(state[:, 2:]), after[:, 2:], atol=1e-12)


def test_starts_are_the_environments_own_resets() -> None:
    starts, goals = pointmaze_starts("large", 40, seed=5)
    env = real_pointmaze("large")
    first = env.reset(seed=5)[0]
    np.testing.assert_array_equal(starts[0], first["observation"])
    np.testing.assert_array_equal(goals[0], first["desired_goal"])
    np.testing.assert_array_equal(pointmaze_starts("large", 7, seed=5)[0], starts[:7])
    assert (starts[:, 2:] == 0).all() and (np.linalg.norm(starts[:, :2] - goals, axis=1) > 0.25).all()


def test_drivers_find_their_way_in_this_frame() -> None:
    task = get_task("pointmaze-umaze")
    starts, goals = task.starts(40, seed=0)
    straight = run_driver(task.world, straight_in(task.world), starts, goals)
    blocked = blocked_mask(task.world, starts, goals)
    np.testing.assert_array_equal(blocked, ~straight.success)
    same_row = np.abs(starts[:, 1] - goals[:, 1]) < 0.5  # the two arms of the U are open along x
    assert blocked.any() and not blocked[same_row].any()
    driven = run_driver(task.world, controller_driver(task.world), starts, goals)
    assert driven.success.all()
    report = score_report(task.world, [driven], [blocked])
    assert "score" not in report.values and (report.values["return"] > 50).mean() > 0.9
    assert (report.values["wall_contact"] == 0).all()  # it keeps to the middle of the cells
    assert (score_report(task.world, [straight], [blocked]).values["wall_contact"][blocked] > 0.5).any()


@pytest.mark.slow
def test_demonstrations_and_their_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    task = get_task("pointmaze-umaze")
    data = load_episodes(task.make_data(steps=6000), infos=["goal"])
    assert data.about["env"] == task.name and data.about["dt"] == 0.01 and tuple(data.about["rows"]) == task.maze.rows
    assert len(data) == 6 and data.observations.shape[1] == 4
    after = np.delete(data.observations[:, :2], data.first_observation, axis=0)
    np.testing.assert_array_equal(data.rewards, np.linalg.norm(after - data.infos["goal"], axis=1) <= 0.45)
    made = pointmaze_demonstrations("umaze", steps=6000, chains=6)
    np.testing.assert_array_equal(made["observations"].reshape(-1, 4), data.observations)
    world = task.world.copies(data.steps)  # what is stored is what the environment does
    world.state = np.delete(data.observations, data.first_observation + data.lengths, axis=0)
    np.testing.assert_allclose(world.step(data.actions)[0][:, :2], after, atol=1e-11)
    visits = np.unique(task.maze.cell(data.infos["goal"]), axis=0)
    np.testing.assert_array_equal(visits, task.maze.free_cells)
