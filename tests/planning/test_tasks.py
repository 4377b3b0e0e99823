"""Tasks: their names, the laws of their starts and goals, and that the world they are played in is the real one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dforce.data import load_episodes
from dforce.envs import MAZES, get_maze
from dforce.planning.baselines.drivers import run_driver, straight_driver
from dforce.planning.scores import blocked_mask, fresh_starts
from dforce.planning.tasks import TASKS, get_task

GRID = "#####/#OOO#/#G###/#OOO#/#####"


@pytest.mark.parametrize("name", ["umaze", "medium", "large", "open"])
def test_starts_of_maze2d_are_fresh_starts_to_the_one_goal(name: str) -> None:
    task = get_task(f"maze2d-{name}")
    starts, goals = task.starts(50, seed=3)
    np.testing.assert_array_equal(starts, fresh_starts(task.maze, 50, 3))
    assert (goals == MAZES[name].goal).all() and task.steps == MAZES[name].max_steps


@pytest.mark.parametrize("name", ["umaze", "medium", "large"])
def test_goals_of_multi2d_are_uniform_over_cells_and_within_them(name: str) -> None:
    task, count = get_task(f"multi2d-{name}"), 4000
    starts, goals = task.starts(count, seed=7)
    np.testing.assert_array_equal(starts, get_task(f"maze2d-{name}").starts(count, 7)[0])
    cells, seen = np.unique(task.maze.cell(goals), axis=0, return_counts=True)
    np.testing.assert_array_equal(cells, task.maze.free_cells)
    chi_squared = ((seen - count / len(cells)) ** 2 / (count / len(cells))).sum()
    assert chi_squared < len(cells) - 1 + 4 * np.sqrt(2 * (len(cells) - 1))  # four deviations above its mean
    offset = goals - np.rint(goals)
    assert np.abs(offset).max() <= 0.1 and offset.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.03)
    assert abs(np.corrcoef(starts[:, 0], goals[:, 0])[0, 1]) < 4 / np.sqrt(count)  # goals do not depend on starts
    assert task.starts(5, 1)[1].tolist() != task.starts(5, 2)[1].tolist()


@pytest.mark.slow
def test_a_grid_of_ones_own_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    (tmp_path / "mine.txt").write_text(GRID.replace("/", "\n"))
    task, same = get_task(GRID), get_task(str(tmp_path / "mine.txt"))
    assert task.name == same.name and task.maze.rows == same.maze.rows
    assert task.name != get_task(GRID.replace("G", "O")).name
    assert (task.starts(3, 0)[1] == (2, 1)).all()  # its G
    data = load_episodes(task.make_data(steps=3000))
    assert data.about["rows"] == GRID.split("/") and data.steps == 3000
    assert task.make_data(steps=3000) == data.about["dataset"] != task.make_data(steps=2000)


def test_a_known_grid_is_the_known_task() -> None:
    assert get_task("/".join(MAZES["umaze"].rows)).name == "maze2d-umaze"
    assert get_maze("umaze").max_steps == get_task("/".join(MAZES["umaze"].rows)).steps


def test_wrong_names_say_what_is_near() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'maze2d-medium'"):
        get_task("maze2d-mediun")
    with pytest.raises(ValueError, match="at least one start"):
        get_task("maze2d-umaze").starts(0, 0)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_an_unobstructed_start_is_solved_by_straight_driving(name: str) -> None:
    """In every frame: a goal half a cell away in the same cell is driven to, and the reward says so."""
    if name.startswith(("pointmaze", "ogbench")):
        pytest.importorskip("gymnasium_robotics" if name.startswith("pointmaze") else "ogbench")
    task = get_task(name)
    frame, cells = task.maze.frame, task.maze.free_cells[:6]
    starts = np.zeros((6, task.world.observation_width))
    starts[:, :2] = frame.position(cells - np.array([0.25, 0.0]))
    goals = frame.position(cells + np.array([0.25, 0.1]))
    done = run_driver(task.world, straight_driver, starts, goals, steps=100)
    assert done.success.all() and (done.rewards[:, -1] == 1).all()


def test_the_maze_of_the_manual_has_starts_that_need_a_plan() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "planning.md").read_text(encoding="utf-8")
    grid, = re.findall(r'dforce data maze maze="([^"]+)"', page)
    task = get_task(grid)
    blocked = blocked_mask(task.world, *task.starts(40, 0))
    assert 0.7 < blocked.mean() < 1  # a spiral: straight driving arrives from few
