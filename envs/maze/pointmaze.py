"""Gymnasium-Robotics' PointMaze-v3: many copies of the package's environment, in its own frame.

Ball and grids are D4RL's; frame, reset, goals and the rewarded radius are not, so that scores cannot be compared:
positions are centred on the maze, x is the column and y minus the row, every reset draws a goal, the reward is 1 within
0.45 of it. Needs the package `gymnasium-robotics` (extra "benchmarks").
"""
from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import gymnasium
import numpy as np

from .batched import MARGIN, MAX_SPEED, RADIUS, Balls
from .controller import WaypointController
from .frame import Frame
from .generate import Advance, drive
from .grid import MAZES
from .physics import Physics
from .world import World

IDS = {"umaze": "PointMaze_UMaze-v3", "medium": "PointMaze_Medium-v3", "large": "PointMaze_Large-v3"}
GOAL_RADIUS = 0.45         # the package's documentation says 0.5, its code 0.45


@lru_cache(maxsize=8)
def pointmaze(size: str) -> World:
    """The world of PointMaze_<size>-v3: umaze, medium, large. Observations (x, y, vx, vy), as its "observation"."""
    maze = MAZES[size]
    rows, columns = maze.walls.shape
    # Two geoms touch from the sum of their margins on, in MuJoCo 4: twice D4RL's.
    frame = Frame(axes=((0, 1), (-1, 0)), origin=((1 - columns) / 2, (rows - 1) / 2), touch=RADIUS + 2 * MARGIN,
                  goal_radius=GOAL_RADIUS)
    maze = replace(maze, name=f"pointmaze-{size}", ref_min=None, ref_max=None, dense_ref_min=None, dense_ref_max=None,
                   frame=frame)
    return World(maze, partial(PointMazes, size))


def real_pointmaze(size: str) -> Any:
    """A new environment of the package. ImportError says what to install where it is missing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):      # its import prints a notice about other environments
            import gymnasium_robotics
    except ImportError as error:
        raise ImportError("PointMaze-v3 is the environment of another package: pip install "
                          "'dforce[benchmarks]'") from error
    if IDS[size] not in gymnasium.registry:
        gymnasium.register_envs(gymnasium_robotics)
    return gymnasium.make(IDS[size])


@lru_cache(maxsize=8)
def _shared(size: str) -> Any:
    return real_pointmaze(size)


def pointmaze_starts(size: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations [n, 4] and goals [n, 2] of n resets of the environment, seeded once."""
    env = _shared(size)
    seen = [env.reset(seed=seed if i == 0 else None)[0] for i in range(n)]
    return np.stack([one["observation"] for one in seen]), np.stack([one["desired_goal"] for one in seen])


class PointMazes(Balls):
    """n balls in the environment's own MuJoCo model, stepped as `PointEnv.step` does: clip action and velocity, step.

    The next state depends on position, velocity and action alone, so that all are stepped in one call.
    """

    def __init__(self, size: str, n: int):
        self.physics = Physics(_shared(size).unwrapped.point_env.model)
        self.state, self.goal = np.zeros((n, 4)), np.zeros((n, 2))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves every ball by 0.01 s under actions [n, 2]; returns observations [n, 4] and sparse rewards [n]."""
        before = self.state.copy()
        before[:, 2:] = np.clip(before[:, 2:], -MAX_SPEED, MAX_SPEED)
        self.state = self.physics.step(before, np.clip(action, -1.0, 1.0), substeps=1)
        away = np.linalg.norm(self.state[:, :2] - self.goal, axis=1)
        return self.state.copy(), (away <= GOAL_RADIUS).astype(float)


def pointmaze_demonstrations(size: str, *, steps: int, noise: float = 0.5, chains: int = 1000,
                             seed: int = 0, advance: Advance = lambda share: None) -> dict[str, np.ndarray]:
    """Demonstrations as `generate` makes them for maze2d: the waypoint controller with action noise, C chains.

    Goals are drawn by the environment's law, a uniform cell +-0.25 a coordinate; a new one is drawn when the ball is
    within 0.1 of the present one (or has headed for it for an episode's steps). Rewards are 1 within 0.45 of the
    present goal. observations [C, S + 1, 4], actions [C, S, 2], goals [C, S, 2], rewards [C, S].
    """
    world, rng = pointmaze(size), np.random.default_rng(seed)
    maze = world.maze
    env = world.copies(chains)
    env.state, first = pointmaze_starts(size, chains, seed)

    def goals(n: int) -> np.ndarray:
        cells = maze.free_cells[rng.integers(len(maze.free_cells), size=n)]
        return maze.frame.position(cells) + rng.uniform(-0.25, 0.25, (n, 2))

    return drive(env, WaypointController(maze, chains, rng, gains=world.gains), first, goals, rng,
                 steps=steps // chains, noise=noise, patience=maze.max_steps, reward_target=True, advance=advance)
