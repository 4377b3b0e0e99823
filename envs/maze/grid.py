"""Mazes as data: the four D4RL maze2d grids, their reference scores, and the reader of text grids.

Frame, unless a maze has another (D4RL's `qpos`): the first coordinate is the row index, the second the column
index. The ball starts from the world point (1.2, 1.2) and wall (i, j) stands at (i + 1, j + 1). So wall (i, j) is the
unit square around (i - 0.2, j - 0.2), and a ball of radius 0.1 in a free cell moves in about [i - 0.6, i + 0.2], which
is not centred on i.
"""
from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .frame import D4RL, Frame

GOAL_RADIUS = 0.5          # the sparse reward is 1 within this distance of the goal
START_JITTER = 0.1         # a reset shifts the ball by U(-0.1, 0.1) on each axis ...
START_SPEED = 0.1          # ... and draws its velocity from N(0, 0.1^2)
MOVES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))     # D4RL's order, which decides between equally short paths


@dataclass(frozen=True)
class Maze:
    """A closed grid.

    rows: of '#' (wall), 'O' (free) and at most one 'G' (free, the goal). goal: the cell (i, j) of the task. max_steps:
    of an episode. ref_min, ref_max, dense_...: raw returns of one episode by D4RL's random policy and expert, None if
    unknown. frame: where the cells are in observed positions.
    """

    name: str
    rows: tuple[str, ...]
    goal: tuple[int, int]
    max_steps: int
    ref_min: float | None = None
    ref_max: float | None = None
    dense_ref_min: float | None = None
    dense_ref_max: float | None = None
    frame: Frame = D4RL

    @cached_property
    def walls(self) -> np.ndarray:
        """Bool [R, C], True where cell (i, j) is a wall."""
        return np.array([[char == "#" for char in row] for row in self.rows])

    @cached_property
    def free_cells(self) -> np.ndarray:
        """Int [F, 2], the free cells (i, j) in reading order, the goal's included."""
        return np.argwhere(~self.walls)

    def cell(self, position: ArrayLike) -> np.ndarray:
        """Cells (i, j) [..., 2], integers, that hold the positions [..., 2]."""
        return np.rint(self.frame.grid(position)).astype(int)

    def is_free(self, position: ArrayLike) -> np.ndarray:
        """Bool [...]: True where the centre of a ball at `position` [..., 2] lies in a free cell."""
        position = np.asarray(position, float)
        finite = np.isfinite(position).all(-1)
        cell = self.cell(np.where(finite[..., None], position, self.frame.origin))
        inside = finite & (cell >= 0).all(-1) & (cell < self.walls.shape).all(-1)
        cell = np.where(inside[..., None], cell, 0)
        return inside & ~self.walls[cell[..., 0], cell[..., 1]]

    def near_wall(self, position: ArrayLike) -> np.ndarray:
        """Bool [...]: True where a wall pushes a ball at `position` [..., 2], its centre in a free cell."""
        offset = self.frame.grid(position)
        cell = np.rint(offset).astype(int)
        offset = offset - cell
        side = np.where(offset < 0, -1, 1)
        gap = 0.5 - np.abs(offset)  # from the ball's centre to the nearest border of its cell, each axis
        (i, j), (di, dj) = np.moveaxis(cell, -1, 0), np.moveaxis(side, -1, 0)
        near = self.frame.touch / self.frame.unit
        beside = self.walls[i + di, j] & (gap[..., 0] < near) | self.walls[i, j + dj] & (gap[..., 1] < near)
        return beside | self.walls[i + di, j + dj] & (np.hypot(gap[..., 0], gap[..., 1]) < near)


def maze_from_text(text: str, *, name: str = "custom", goal: tuple[int, int] | None = None,
                   max_steps: int = 600) -> Maze:
    """Maze from rows of '#' (wall), 'O' (free) and 'G' (goal), one row a line (or separated by '/').

    Without `goal` the goal is the cell 'G' or, if there is none, the last free cell in reading order. ValueError for
    a grid that is not rectangular, not closed by walls, not connected, has an unknown character or no free cell.
    """
    rows = tuple(row.strip() for row in text.replace("/", "\n").splitlines() if row.strip())
    _check_grid(rows)
    free = [(i, j) for i, row in enumerate(rows) for j, char in enumerate(row) if char != "#"]
    _check_connected(rows, free)
    marked = [(i, j) for i, j in free if rows[i][j] == "G"]
    if len(marked) > 1:
        raise ValueError(f"maze {name!r} marks {len(marked)} goals 'G' at {marked}; mark one at most")
    chosen = tuple(int(v) for v in goal) if goal is not None else (marked or free[-1:])[0]
    if chosen not in free:
        raise ValueError(f"goal {chosen} of maze {name!r} is not a free cell; free cells (row, column): {free}")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; an episode needs at least 1 step")
    return Maze(name, rows, chosen, max_steps)


def _check_grid(rows: tuple[str, ...]) -> None:
    if not any(char in "OG" for row in rows for char in row):
        raise ValueError("the maze has no free cell; write 'O' for free cells, '#' for walls and 'G' for the goal")
    for i, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"the maze is not rectangular: row {i} {row!r} has {len(row)} cells, row 0 has "
                             f"{len(rows[0])}; pad it with '#'")
        for j, char in enumerate(row):
            if char not in "#OG":
                raise ValueError(f"unknown character {char!r} in row {i}, column {j} of the maze; use '#' for walls, "
                                 "'O' for free cells and 'G' for the goal")
            border = i in (0, len(rows) - 1) or j in (0, len(row) - 1)
            if border and char != "#":
                raise ValueError(f"the maze is not closed by walls: border cell (row {i}, column {j}) is {char!r}; "
                                 "surround the grid with '#'")


def _check_connected(rows: tuple[str, ...], free: list[tuple[int, int]]) -> None:
    reached, frontier = {free[0]}, [free[0]]
    while frontier:
        i, j = frontier.pop()
        fresh = [(i + di, j + dj) for di, dj in MOVES if rows[i + di][j + dj] != "#"]
        frontier += [cell for cell in fresh if cell not in reached]
        reached.update(fresh)
    if len(reached) < len(free):
        lost = next(cell for cell in free if cell not in reached)
        raise ValueError(f"the maze is not connected: cell {lost} cannot be reached from {free[0]}; open a wall "
                         "between them (diagonal neighbours do not touch)")


def _d4rl(name: str, text: str, max_steps: int, sparse: tuple[float, float], dense: tuple[float, float]) -> Maze:
    maze = maze_from_text(text, name=name, max_steps=max_steps)
    return Maze(name, maze.rows, maze.goal, max_steps, *sparse, *dense)


# Grids, step limits and reference returns as registered by D4RL (open-v0, the others -v1).
MAZES: dict[str, Maze] = {maze.name: maze for maze in (
    _d4rl("open", "#######/#OOOOO#/#OOGOO#/#OOOOO#/#######", 150, (0.01, 20.66), (11.17817, 27.16654)),
    _d4rl("umaze", "#####/#GOO#/###O#/#OOO#/#####", 300, (23.85, 161.86), (68.53769, 193.66286)),
    _d4rl("medium", "########/#OO##OO#/#OO#OOO#/##OOO###/#OO#OOO#/#O#OO#O#/#OOO#OG#/########",
          600, (13.13, 277.39), (44.26474, 297.45526)),
    _d4rl("large", "############/#OOOO#OOOOO#/#O##O#O#O#O#/#OOOOOO#OOO#/#O####O###O#/#OO#O#OOOOO#/##O#O#O#O###/"
          "#OO#OOO#OGO#/############", 800, (6.7, 273.99), (30.56904, 303.48574)),
)}


def get_maze(name_or_text: str | Maze) -> Maze:
    """A maze by its name, from a text grid (any text with a '#' in it), or from a file that holds one.

    A `Maze` is returned as it is.
    """
    if isinstance(name_or_text, Maze):
        return name_or_text
    if "#" in name_or_text:
        return maze_from_text(name_or_text)
    if name_or_text not in MAZES:
        if Path(name_or_text).is_file():
            return maze_from_text(Path(name_or_text).read_text(encoding="utf-8"))
        if name_or_text and set(name_or_text) <= set("OG/"):
            raise ValueError(f"the grid {name_or_text!r} has no walls '#': close it by them all around")
        near = difflib.get_close_matches(name_or_text, MAZES, n=1, cutoff=0.5)
        raise ValueError(f"unknown maze {name_or_text!r}; {f'did you mean {near[0]!r}? ' if near else ''}choose one of "
                         f"{', '.join(sorted(MAZES))}, or give a text grid of '#', 'O' and 'G' such as "
                         '"#####/#OOG#/#####", or a file that holds one')
    return MAZES[name_or_text]


def sample_starts(maze: Maze, n: int, rng: np.random.Generator) -> np.ndarray:
    """States [n, 4] of D4RL's reset: a uniform free cell (also the goal's) +-0.1 a coordinate, velocity N(0, 0.1^2)."""
    cells = maze.free_cells[rng.integers(len(maze.free_cells), size=n)]
    position = cells + rng.uniform(-START_JITTER, START_JITTER, (n, 2))
    return np.concatenate([position, START_SPEED * rng.standard_normal((n, 2))], 1)


def sample_goals(maze: Maze, n: int, rng: np.random.Generator) -> np.ndarray:
    """Goals [n, 2] of Multi2D (D4RL's `set_target()`): a uniform free cell +-0.1 a coordinate."""
    cells = maze.free_cells[rng.integers(len(maze.free_cells), size=n)]
    return cells + rng.uniform(-START_JITTER, START_JITTER, (n, 2))


def maze_reward(position: ArrayLike, goal: ArrayLike, *, dense: bool = False) -> np.ndarray:
    """D4RL's reward [...] of arriving at `position` [..., 2]: 1 within 0.5 of `goal`, else 0; dense exp(-distance)."""
    offset = np.asarray(position) - np.asarray(goal)
    squared = offset[..., 0] ** 2 + offset[..., 1] ** 2
    return np.exp(-np.sqrt(squared)) if dense else (squared <= GOAL_RADIUS**2).astype(float)


def normalized_score(maze: Maze, raw_return: Any, *, dense: bool = False) -> Any:
    """100 * (raw - ref_min) / (ref_max - ref_min), D4RL's score of raw returns (a number or an array).

    ref_max is the return of D4RL's scripted expert, which does not plan again in a new episode; the same controller
    with a new plan for each episode scores about 140 (umaze) to 210 (large). ValueError for a maze without references.
    """
    low, high = (maze.dense_ref_min, maze.dense_ref_max) if dense else (maze.ref_min, maze.ref_max)
    if low is None or high is None or math.isclose(low, high):
        raise ValueError(f"maze {maze.name!r} has references ({low}, {high}); a score needs two different numbers: "
                         "report the raw return, or set ref_min and ref_max with dataclasses.replace")
    return 100.0 * (raw_return - low) / (high - low)
