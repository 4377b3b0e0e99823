"""A small picture of a maze in plain numpy, without OpenGL, a window or a plotting library."""
from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from .batched import RADIUS
from .frame import CELL_OFFSET, D4RL
from .grid import Maze

WALL, FLOOR, GOAL, HALO, BALL = (55, 60, 70), (244, 244, 240), (214, 60, 60), (250, 214, 208), (40, 90, 200)


def draw_maze(maze: Maze, position: ArrayLike, goal: ArrayLike, *, pixels: int = 32) -> np.ndarray:
    """uint8 [R * pixels, C * pixels, 3] of a ball at `position` [2], its `goal` [2] and the rewarded disc.

    Rows grow downwards and columns to the right, as in the maze's text, whatever the maze's frame.
    """
    rows, columns = maze.walls.shape
    places = np.asarray(position, float), np.asarray(goal, float)
    position, goal = places if maze.frame == D4RL else (D4RL.position(maze.frame.grid(place)) for place in places)
    x = (np.arange(rows * pixels) + 0.5)[:, None] / pixels - 0.5 - CELL_OFFSET
    y = (np.arange(columns * pixels) + 0.5)[None, :] / pixels - 0.5 - CELL_OFFSET
    image = np.empty((rows * pixels, columns * pixels, 3), np.uint8)
    image[:] = FLOOR
    image[np.hypot(x - goal[0], y - goal[1]) < maze.frame.goal_radius / maze.frame.unit] = HALO
    image[maze.walls.repeat(pixels, 0).repeat(pixels, 1)] = WALL
    image[np.hypot(x - goal[0], y - goal[1]) < RADIUS] = GOAL
    image[np.hypot(x - position[0], y - position[1]) < RADIUS] = BALL
    return image
