"""OGBench's pointmaze in batches: equal to the package's environment step by step, its tasks, and its data recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dforce.data import load_episodes
from dforce.envs.maze.ogbench import (
    DISPLACEMENT,
    GOAL_RADIUS,
    RECIPE,
    ogbench,
    ogbench_demonstrations,
    ogbench_starts,
    real_ogbench,
    subgoal,
    vertices,
)
from dforce.planning.baselines.drivers import controller_driver, run_driver
from dforce.planning.control import Plan, diffused_action, run_episodes, tracking
from dforce.planning.tasks import get_task

pytest.importorskip("ogbench")


@pytest.mark.parametrize("size", sorted(RECIPE))
def test_world_equals_the_real_environment_step_by_step(size: str) -> None:
    """Bit by bit, although MuJoCo is only asked about balls that touch a wall."""
    real, world = real_ogbench(size).unwrapped, ogbench(size)
    rng, count = np.random.default_rng(0), 60
    cells = world.maze.free_cells[rng.integers(len(world.maze.free_cells), size=count)]
    balls = world.copies(count)
    balls.state = world.maze.frame.position(cells) + rng.uniform(-1.25, 1.25, (count, 2))
    balls.goal = balls.state + rng.uniform(-1.0, 1.0, (count, 2))
    real.reset(seed=0)
    touched = 0
    for _ in range(3):
        before = balls.state.copy()
        outward = np.sign(before - world.maze.frame.position(world.maze.cell(before)))
        action = np.clip(rng.uniform(-1, 1, (count, 2)) + outward, -1, 1)  # towards the walls
        state, reward = balls.step(action)
        for ball in range(count):
            real.set_xy(before[ball])
            real.cur_goal_xy = balls.goal[ball]
            observation, rewarded, *_ = real.step(action[ball])
            np.testing.assert_array_equal(state[ball], observation)
            assert reward[ball] == rewarded
        pushed = (state != before + DISPLACEMENT * action).any(axis=1)
        touched += pushed.sum()
        assert not (pushed & ~world.maze.near_wall(before + DISPLACEMENT * action)).any()
    assert touched > 20


@pytest.mark.parametrize("size", sorted(RECIPE))
def test_frame_oracle_and_tasks_are_those_of_the_package(size: str) -> None:
    maze, real = ogbench(size).maze, real_ogbench(size)
    inner = real.unwrapped
    np.testing.assert_array_equal(maze.walls, inner.maze_map == 1)
    centres = np.array([inner.ij_to_xy(cell) for cell in maze.free_cells], float)
    np.testing.assert_array_equal(maze.frame.position(maze.free_cells), centres)
    rng = np.random.default_rng(1)
    here, there = (centres[rng.integers(len(centres), size=60)] + rng.uniform(-1.3, 1.3, (60, 2)) for _ in range(2))
    wanted = [inner.get_oracle_subgoal(*pair)[0] for pair in zip(here, there, strict=True)]
    np.testing.assert_array_equal(subgoal(maze, here, there), wanted)
    assert (real.spec.max_episode_steps, inner._goal_tol) == (maze.max_steps, GOAL_RADIUS)

    before = np.random.get_state()[1].copy()
    starts, goals = ogbench_starts(size, 12, seed=4)
    np.testing.assert_array_equal(before, np.random.get_state()[1])  # the global generator is as it was
    for i, info in enumerate((inner.task_infos * 3)[:12]):
        np.testing.assert_array_equal(maze.cell(starts[i]), info["init_ij"])
        np.testing.assert_array_equal(maze.cell(goals[i]), info["goal_ij"])
    assert np.abs(starts - maze.frame.position(maze.cell(starts))).max() <= 1.0 and len(np.unique(starts)) == 24
    np.testing.assert_array_equal(ogbench_starts(size, 5, seed=4)[1], goals[:5])


def test_goals_of_the_recipe_are_no_corridors() -> None:
    maze = ogbench("medium").maze
    free = {tuple(cell) for cell in maze.free_cells}
    kept = {tuple(cell) for cell in vertices(maze)}
    for i, j in free:
        open_to = [(di, dj) for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)) if (i + di, j + dj) in free]
        straight = sorted(open_to) in ([(-1, 0), (1, 0)], [(0, -1), (0, 1)])
        assert ((i, j) in kept) != straight
    assert 0 < len(kept) < len(free)


def test_demonstrations_follow_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    task = get_task("ogbench-medium")
    data = load_episodes(task.make_data(steps=3003), infos=["goal"])
    assert len(data) == 3 and set(data.lengths) == {RECIPE["medium"][1]} and data.observations.shape[1] == 2
    assert data.about["env"] == task.name and data.about["dt"] == 0.1 and tuple(data.about["rows"]) == task.maze.rows
    before = np.delete(data.observations, data.first_observation + data.lengths, axis=0)
    after = np.delete(data.observations, data.first_observation, axis=0)
    goal, maze = data.infos["goal"], task.maze
    np.testing.assert_array_equal(data.rewards, np.linalg.norm(after - goal, axis=1) <= GOAL_RADIUS)
    assert maze.is_free(after).all() and data.rewards.sum() > 5
    first, last = data.first_step[1], data.first_step[1] + data.lengths[1] - 1
    changed = (goal[first + 1:last + 1] != goal[first:last]).any(axis=1)
    np.testing.assert_array_equal(changed, data.rewards[first:last] == 1)  # a new goal on success, and only then
    known = {tuple(cell) for cell in vertices(maze)}
    assert {tuple(cell) for cell in maze.cell(goal)} <= known
    # The action is the unit vector to the next centre plus N(0, .5^2), clipped: where clipping is far, its mean shows.
    heading = subgoal(maze, before, goal) - before
    heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 1e-6
    across = np.abs(heading) < 0.2
    noise = (data.actions - heading)[across]
    assert abs(noise.mean()) < 0.04 and noise.std() == pytest.approx(0.47, abs=0.02)  # .5 clipped at about +-1


def test_recipe_without_noise_drives_at_full_speed_to_every_goal() -> None:
    made = ogbench_demonstrations("medium", episodes=4, length=300, noise=0.0)
    step = np.linalg.norm(np.diff(made["observations"], axis=1), axis=2)
    assert np.median(step) == pytest.approx(DISPLACEMENT, rel=1e-5) and made["rewards"].sum() > 4


def test_executors_mean_displacements_here() -> None:
    """Tracking takes each step of a feasible plan in one action; the plan's own actions do the same."""
    task = get_task("ogbench-large")
    starts, goals = task.starts(5, seed=0)
    guide = run_driver(task.world, controller_driver(task.world), starts, goals, steps=200)
    assert (guide.actions[:, :-1].max() <= 1) and (np.diff(guide.trajectory[:, :, 0]) != 0).any()
    plan = Plan(guide.actions, guide.trajectory[:, 1:])
    for executor in (tracking(hold=False), diffused_action()):
        done = run_episodes(task.world, lambda *_: plan, executor, starts, goals, steps=200)
        np.testing.assert_allclose(done.trajectory, guide.trajectory, atol=1e-9)
    assert tracking().in_world(task.world).variant["gain_p"] == 1 / DISPLACEMENT
    assert tracking(gain_p=3.0).in_world(task.world).gains() == (3.0, 0.0)


def test_the_controller_solves_all_five_tasks() -> None:
    task = get_task("ogbench-medium")
    starts, goals = task.starts(5, seed=0)
    done = run_driver(task.world, controller_driver(task.world), starts, goals)
    assert done.success.all() and done.rewards[:, -1].all()
