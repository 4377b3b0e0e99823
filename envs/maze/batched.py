"""Many mazes at once in numpy: the ball's dynamics in closed form, equal to one MuJoCo step (Euler integrator).

The ball is a point mass on two slide joints, so MuJoCo's soft contact (Todorov 2014, "Convex and analytically
invertible dynamics with contacts and constraints") is a convex problem in two accelerations with at most three
contacts: the wall beside the ball on each axis, and the wall on the diagonal.
"""
from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

import numpy as np

from ..protocol import Copies
from .frame import CELL_OFFSET, D4RL
from .grid import Maze, get_maze, maze_reward, sample_starts

DT = 0.01                                   # s
RADIUS = 0.1                                # m
DENSITY = 1000.0                            # kg / m^3
MASS = 4 / 3 * math.pi * RADIUS**3 * DENSITY
DAMPING = 1.0                               # N s / m, on each joint
GEAR = 100.0                                # N for an action of 1
MAX_SPEED = 5.0                             # m / s, each axis is clipped to it before a step
MARGIN = 0.002                              # m, a contact acts from this distance on

# MuJoCo's defaults: solref (0.02, 1) as stiffness and damping, solimp (0.9, 0.95, 0.001, 0.5, 2) as impedance.
IMPEDANCE_MIN, IMPEDANCE_MAX, IMPEDANCE_WIDTH = 0.9, 0.95, 0.001
STIFFNESS = 1.0 / (IMPEDANCE_MAX * 0.02) ** 2
CONTACT_DAMPING = 2.0 / (IMPEDANCE_MAX * 0.02)
INVERSE_MASS = 1.0 / MASS                   # MuJoCo's `body_invweight0`, by which it scales a contact's softness


def dynamics(maze: Maze, state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """States [N, 4] = (x, y, vx, vy) 0.01 s after states [N, 4] under actions [N, 2] (clipped to [-1, 1]).

    Positions must have their centre in a free cell (`Maze.is_free`); walls push only on balls that touch them.
    """
    columns = np.asarray(state, float).T
    position = columns[:2] + 0.0                                            # [2, N], contiguous
    velocity = np.minimum(np.maximum(columns[2:], -MAX_SPEED), MAX_SPEED)
    control = np.minimum(np.maximum(np.asarray(action, float).T, -1.0), 1.0)
    force = GEAR * control - DAMPING * velocity
    force += _contact_force(maze, position, velocity, force)
    velocity += DT / (MASS + DT * DAMPING) * force                          # joint damping is implicit in the velocity
    position += DT * velocity
    return np.concatenate([position, velocity]).T.copy()


def _contact_force(maze: Maze, position: np.ndarray, velocity: np.ndarray, force: np.ndarray) -> np.ndarray:
    """Forces of the walls [2, N] on balls at `position` [2, N], `velocity` [2, N] under `force` [2, N] (N)."""
    total = np.zeros_like(force)
    offset = position + CELL_OFFSET
    cell = np.rint(offset)
    offset -= cell
    gap = 0.5 - np.abs(offset)                          # from the centre to the cell's nearest border, each axis
    near = np.flatnonzero(np.minimum(gap[0], gap[1]) < RADIUS + MARGIN)
    side = np.where(offset[:, near] < 0, -1.0, 1.0)     # the side of that border: all are mirrored into one quadrant
    present = _neighbours(maze, cell[:, near], side)                        # [3, M]
    gap = gap[:, near]
    corner = np.sqrt(gap[0] ** 2 + gap[1] ** 2)
    distance = np.stack([gap[0], gap[1], corner])
    present &= distance < RADIUS + MARGIN
    touching = np.flatnonzero(present.any(0))
    if not len(touching):
        return total
    rows, side = near[touching], side[:, touching]
    direction = gap[:, touching] / np.maximum(corner[touching], 1e-12)      # towards the diagonal wall
    pushed = _solve(distance[:, touching], present[:, touching], direction, side * velocity[:, rows],
                    side * force[:, rows])
    total[:, rows] = side * pushed
    return total


@lru_cache(maxsize=64)
def _neighbour_table(maze: Maze) -> np.ndarray:
    """Bool [3, R * C * 4]: True where a wall is beside cell (i, j), on the row axis, the column axis or the diagonal.

    The last factor 4 is the quadrant of the cell that the ball is in, 2 * (row side > 0) + (column side > 0).
    """
    shape = maze.walls.shape
    padded = np.pad(maze.walls, 1)
    table = np.zeros((3, *shape, 4), bool)
    for quadrant, (di, dj) in enumerate(((-1, -1), (-1, 1), (1, -1), (1, 1))):
        for contact, (i, j) in enumerate(((di, 0), (0, dj), (di, dj))):
            table[contact, ..., quadrant] = padded[1 + i:1 + i + shape[0], 1 + j:1 + j + shape[1]]
    return table.reshape(3, -1)


def _neighbours(maze: Maze, cell: np.ndarray, side: np.ndarray) -> np.ndarray:
    index = (4 * maze.walls.shape[1]) * cell[0] + 4 * cell[1] + (side[0] + 0.5 * side[1] + 1.5)
    return np.take(_neighbour_table(maze), index.astype(np.intp), axis=1, mode="clip")


def _impedance(depth: np.ndarray) -> np.ndarray:
    """MuJoCo's d(r) in [0.9, 0.95] for a depth inside the margin (m), `solimp` midpoint 0.5 and power 2."""
    x = np.minimum(depth / IMPEDANCE_WIDTH, 1.0)
    smooth = np.where(x < 0.5, 2.0 * x * x, 1.0 - 2.0 * (1.0 - x) ** 2)
    return IMPEDANCE_MIN + (IMPEDANCE_MAX - IMPEDANCE_MIN) * smooth


def _solve(distance: np.ndarray, present: np.ndarray, direction: np.ndarray, velocity: np.ndarray,
           force: np.ndarray) -> np.ndarray:
    """Contact forces [2, M] in mirrored coordinates, where walls lie on the positive side of both axes.

    Contacts 0, 1, 2 [3, M] have normals (1, 0), (0, 1) and `direction` [2, M]. With D = 1 / R the solution minimises
    m |a - force / m|^2 / 2 + sum_i D_i min(0, -n_i a - a_ref_i)^2 / 2 over accelerations a: Newton's method on the
    set of pushing contacts, exact as soon as the set repeats.
    """
    depth = RADIUS + MARGIN - distance
    impedance = _impedance(depth)
    weight = present * impedance / ((1.0 - impedance) * INVERSE_MASS)                      # 1 / R
    approach = np.stack([velocity[0], velocity[1], direction[0] * velocity[0] + direction[1] * velocity[1]])
    target = CONTACT_DAMPING * approach + STIFFNESS * impedance * depth                         # a_ref
    accel = force / MASS
    pushing = _pushing(accel, direction, target, weight)
    open_rows: slice | np.ndarray = slice(None)
    for _ in range(8):
        solved = _accelerate(pushing[:, open_rows] * weight[:, open_rows], target[:, open_rows],
                             direction[:, open_rows], force[:, open_rows])
        accel[:, open_rows] = solved
        again = _pushing(solved, direction[:, open_rows], target[:, open_rows], weight[:, open_rows])
        changed = (again != pushing[:, open_rows]).any(0)
        if not changed.any():
            break
        pushing[:, open_rows] = again
        open_rows = np.flatnonzero(changed) if isinstance(open_rows, slice) else open_rows[changed]
    return MASS * accel - force


def _pushing(accel: np.ndarray, direction: np.ndarray, target: np.ndarray, weight: np.ndarray) -> np.ndarray:
    along = np.stack([accel[0], accel[1], direction[0] * accel[0] + direction[1] * accel[1]])
    return (along + target > 0) & (weight > 0)


def _accelerate(weight: np.ndarray, target: np.ndarray, direction: np.ndarray, force: np.ndarray) -> np.ndarray:
    """Solves (m + sum_i D_i n_i n_i^T) a = force - sum_i D_i a_ref_i n_i for a [2, M], D_i = `weight` [3, M]."""
    pull = weight * target
    diagonal = weight[2] * direction
    h00 = MASS + weight[0] + diagonal[0] * direction[0]
    h11 = MASS + weight[1] + diagonal[1] * direction[1]
    h01 = diagonal[0] * direction[1]
    g0 = force[0] - pull[0] - pull[2] * direction[0]
    g1 = force[1] - pull[1] - pull[2] * direction[1]
    scale = 1.0 / (h00 * h11 - h01 * h01)
    return np.stack([scale * (h11 * g0 - h01 * g1), scale * (h00 * g1 - h01 * g0)])


class Balls(Copies, Protocol):
    """n balls in n copies of a maze. Both arrays are plain and settable; a start is an observation.

    state: [n, O], what is observed, position (x, y) first, then velocity where there is one; goal: [n, 2].
    """

    state: np.ndarray
    goal: np.ndarray

    def begin(self, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Puts the balls at `start` [n, O], sets `goal` [n, 2]; returns the observations, the starts themselves."""
        self.state, self.goal = start.copy(), goal.copy()
        return start.copy()


class BatchedMaze(Balls):
    """n of D4RL's balls in n copies of a maze. `state` [n, 4] = (x, y, vx, vy).

    An episode never ends by itself: the caller counts `maze.max_steps`. dense: the reward is exp(-distance).
    """

    def __init__(self, maze: Maze | str, n: int, *, dense: bool = False):
        self.maze, self.n, self.dense = get_maze(maze), n, dense
        if self.maze.frame != D4RL:
            raise ValueError(f"maze {self.maze.name!r} has a frame of its own, in which these dynamics do not hold: "
                             "play in its world (`World.copies`), or take the grid alone with maze_from_text")
        self.state = np.zeros((n, 4))
        self.goal = np.tile(np.asarray(self.maze.goal, float), (n, 1))

    def reset(self, rng: np.random.Generator, goal: np.ndarray | None = None) -> np.ndarray:
        """Start states [n, 4] by D4RL's reset. `goal` [n, 2]; None is the maze's own goal, the exact integer cell."""
        goal = np.asarray(self.maze.goal if goal is None else goal, float)
        if goal.shape not in ((2,), (self.n, 2)):
            raise ValueError(f"goal has shape {goal.shape}; want ({self.n}, 2), one (x, y) a maze")
        free = self.maze.is_free(goal)
        if not np.all(free):
            raise ValueError(f"goal {goal.reshape(-1, 2)[np.flatnonzero(~np.atleast_1d(free))[0]]} is in a wall of "
                             f"maze {self.maze.name!r}; free cells (row, column): {self.maze.free_cells.tolist()}")
        self.goal = np.broadcast_to(goal, (self.n, 2)).copy()
        self.state = sample_starts(self.maze, self.n, rng)
        return self.state.copy()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves every ball by 0.01 s under actions [n, 2]; returns (states [n, 4], rewards [n] of the new states)."""
        action = np.asarray(action, float)
        if action.shape != (self.n, 2):
            raise ValueError(f"action has shape {action.shape}; want ({self.n}, 2), one (ax, ay) a maze")
        self.state = dynamics(self.maze, self.state, action)
        return self.state.copy(), maze_reward(self.state[:, :2], self.goal, dense=self.dense)
