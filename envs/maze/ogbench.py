"""OGBench's pointmaze: many copies of the package's environment, its tasks, and data by its published recipe.

The ball is moved, not pushed: an action in [-1, 1] displaces it by 0.2 m an axis (walls push it back). Its position
(x, y) is observed, x along columns, y along rows; a cell is 4 m. Five tasks a maze, each with its own
start and goal cell, +-1 m. Park et al., "OGBench: Benchmarking Offline Goal-Conditioned RL", 2024; the recipe of the
"navigate" data is its data_gen_scripts/generate_locomaze.py. Needs the package `ogbench` (extra "benchmarks").
"""
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import gymnasium
import numpy as np

from .batched import Balls
from .controller import next_cells
from .frame import Frame
from .generate import Advance
from .grid import MAZES, Maze, maze_from_text
from .physics import Physics
from .world import World

UNIT = 4.0                 # m, the side of a cell
DISPLACEMENT = 0.2         # m an axis for an action of 1
GOAL_RADIUS = 1.0          # m
BALL = 0.7                 # m
DT = 0.1                   # s: five physics steps of 0.02 s
SUBSTEPS = 5
START_NOISE = 1.0          # m, starts and goals are shifted by U(-1, 1) on each axis
EPISODE = 1000             # steps, of the registered environments
ACTION_NOISE = 0.5         # of the recipe's commands for pointmaze
TASKS = 5
RECIPE = {"medium": (1000, 1001), "large": (1000, 1001), "giant": (500, 2001)}     # episodes, steps of each
GIANT = ("################/#O#OOOOOO##OOOO#/#O#O##O#O#OO##O#/#OOO#OO#OOO#OOO#/#O###O######O#O#/#OOO#OOO#OOOO#O#/"
         "###O#O#OO#O#O###/#OOO#OO#OOO#OOO#/#O#O#O######O#O#/#O###OOO#OOO##O#/#OOOOO#OOO#OOOO#/################")
MOVES = ((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1))     # the oracle's order, which decides between equally short paths


@lru_cache(maxsize=8)
def ogbench(size: str) -> World:
    """The world of pointmaze-<size>-v0: medium, large, giant. Observations (x, y); actions displace by 0.2 m.

    Gains are (5 actions a metre, 0): one action is the missing displacement, or as much of it as it can be.
    """
    frame = Frame(axes=((0, 1), (1, 0)), origin=(-UNIT, -UNIT), unit=UNIT, touch=BALL, goal_radius=GOAL_RADIUS)
    known = replace(MAZES[size], ref_min=None, ref_max=None, dense_ref_min=None, dense_ref_max=None) \
        if size in MAZES else maze_from_text(GIANT)
    maze = replace(known, name=f"ogbench-{size}", max_steps=EPISODE, frame=frame)
    return World(maze, partial(OGBenchMazes, size), observation_width=2, gains=(1 / DISPLACEMENT, 0.0))


def real_ogbench(size: str) -> Any:
    """A new environment of the package, whose episodes do not end at the goal. ImportError says what to install."""
    try:
        import ogbench.locomaze  # noqa: F401  registers the environments
    except ImportError as error:
        raise ImportError("OGBench's environments are another package: pip install 'dforce[benchmarks]'") from error
    return gymnasium.make(f"pointmaze-{size}-v0", terminate_at_goal=False)


@lru_cache(maxsize=8)
def _shared(size: str) -> Any:
    return real_ogbench(size)


def ogbench_starts(size: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions [n, 2] and goals [n, 2] of n resets of the environment, with its five tasks in turn."""
    env, random = _shared(size), np.random.get_state()
    np.random.seed(seed)                    # the environment shifts starts and goals by numpy's global generator
    try:
        pairs = []
        for i in range(n):
            obs, info = env.reset(seed=seed, options={"task_id": 1 + i % TASKS})
            pairs.append((obs, info["goal"]))
    finally:
        np.random.set_state(random)
    starts, goals = zip(*pairs, strict=True)
    return np.stack(starts), np.stack(goals)


class OGBenchMazes(Balls):
    """n balls in the environment's own MuJoCo model, stepped as `PointEnv.step` does: displaced, then simulated.

    A ball that touches no wall after the displacement stays there exactly; only the others are simulated.
    """

    def __init__(self, size: str, n: int):
        self.maze, self.physics = ogbench(size).maze, Physics(_shared(size).unwrapped.model)
        self.state, self.goal = np.zeros((n, 2)), np.zeros((n, 2))

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves every ball by 0.1 s under actions [n, 2]; returns positions [n, 2] and sparse rewards [n]."""
        self.state = self.state + DISPLACEMENT * np.clip(action, -1.0, 1.0)
        pushed = np.flatnonzero(self.maze.near_wall(self.state))
        rest = np.concatenate([self.state[pushed], np.zeros((len(pushed), 2))], axis=1)
        self.state[pushed] = self.physics.step(rest, np.zeros((len(pushed), 2)), substeps=SUBSTEPS)[:, :2]
        away = np.linalg.norm(self.state - self.goal, axis=1)
        return self.state.copy(), (away <= GOAL_RADIUS).astype(float)


def ogbench_demonstrations(size: str, *, episodes: int | None = None, length: int | None = None,
                           noise: float = ACTION_NOISE, seed: int = 0,
                           advance: Advance = lambda share: None) -> dict[str, np.ndarray]:
    """The "navigate" data: E episodes of S steps (the recipe's numbers unless given), random goals one after another.

    The driver heads for the centre of the next cell on a shortest path (in the goal's cell: of that cell) at full
    speed, with Gaussian noise on the action, which is then clipped. Starts are uniform over cells, goals over cells
    that are not the middle of a straight corridor, both +-1 m; a new goal is drawn on success. observations [E, S + 1,
    2], actions [E, S, 2], goals [E, S, 2], rewards [E, S]: 1 on success.
    """
    count, steps = (given or usual for given, usual in zip((episodes, length), RECIPE[size], strict=True))
    rng, world = np.random.default_rng(seed), ogbench(size)
    maze, env, crossings = world.maze, world.copies(count), vertices(world.maze)

    def near(cells: np.ndarray, n: int) -> np.ndarray:
        chosen = cells[rng.integers(len(cells), size=n)]
        return maze.frame.position(chosen) + rng.uniform(-START_NOISE, START_NOISE, (n, 2))

    env.state, env.goal = near(maze.free_cells, count), near(crossings, count)
    observations, actions = np.empty((steps + 1, count, 2)), np.empty((steps, count, 2))
    goals, rewards = np.empty((steps, count, 2)), np.empty((steps, count))
    observations[0] = env.state
    for t in range(steps):
        goals[t] = env.goal
        heading = subgoal(maze, observations[t], env.goal) - observations[t]
        heading /= np.linalg.norm(heading, axis=1, keepdims=True) + 1e-6
        actions[t] = np.clip(heading + noise * rng.standard_normal((count, 2)), -1.0, 1.0)
        observations[t + 1], rewards[t] = env.step(actions[t])
        done = np.flatnonzero(rewards[t])
        env.goal[done] = near(crossings, len(done))
        advance(1 / steps)
    packed = {"observations": observations, "actions": actions, "goals": goals, "rewards": rewards}
    return {name: array.swapaxes(0, 1).copy() for name, array in packed.items()}


def subgoal(maze: Maze, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Centre [N, 2] of the next cell from `position` [N, 2] on a shortest path to the cell of `goal` [N, 2]."""
    here, target = (cells[:, 0] * maze.walls.shape[1] + cells[:, 1] for cells in (maze.cell(position), maze.cell(goal)))
    return maze.frame.position(next_cells(maze, MOVES)[target, here])


def vertices(maze: Maze) -> np.ndarray:
    """Int [V, 2]: the cells of the recipe's goals, all free ones but those in the middle of a straight corridor."""
    free = ~maze.walls
    i, j = maze.free_cells.T
    up, down, left, right = free[i - 1, j], free[i + 1, j], free[i, j - 1], free[i, j + 1]
    corridor = (up & down & ~left & ~right) | (left & right & ~up & ~down)
    return maze.free_cells[~corridor]
