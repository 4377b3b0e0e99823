"""The maze2d dataset generator, vectorised over chains: a scripted driver visits random cells, one after another."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from .batched import Balls, BatchedMaze
from .controller import REACHED, WaypointController
from .grid import Maze, get_maze

Advance = Callable[[float], object]


def generate(maze: Maze | str, *, steps: int, noise: float = 0.5, chains: int = 1000,
             seed: int = 0, advance: Advance = lambda share: None) -> dict[str, np.ndarray]:
    """`steps` transitions in C = `chains` continuous trajectories of S = steps / chains steps each, as float64 arrays.

    observations [C, S + 1, 4] (x, y, vx, vy), actions [C, S, 2] as executed (clipped), goals [C, S, 2] the integer
    cell that the driver heads for, rewards [C, S]: 1 where the NEXT observation is within 0.5 of `maze.goal` (not of
    the driver's cell), as `step` of the environment returns it. D4RL's files hold the reward of the present observation
    instead, and one repeated row at each change of target.

    The action is clip(controller + noise * N(0, 1)): 0.5 matches the statistics of the released maze2d-v1 files, 0 is
    D4RL's script without `--noisy`. A new uniform cell is drawn when the ball is within 0.1 of the present one, or the
    driver has headed for it for `maze.max_steps` steps. A chain begins with a reset, not in the stationary
    distribution: at 1000 steps a chain this changes umaze's standard deviations by about 0.5%, with longer chains by
    less. advance: told the share of each step, 1 in all. ValueError if `steps` is no multiple of `chains`.
    """
    maze = get_maze(maze)
    if chains < 1 or steps < chains or steps % chains:
        raise ValueError(f"steps={steps} is no positive multiple of chains={chains}; each chain gets steps / chains")
    if noise < 0:
        raise ValueError(f"noise={noise} is the standard deviation of the action noise; want a number >= 0")
    rng = np.random.default_rng(seed)
    length = steps // chains
    env = BatchedMaze(maze, chains)
    driver = WaypointController(maze, chains, rng)
    env.reset(rng)
    first = _random_cells(maze, chains, rng=rng)
    return drive(env, driver, first, partial(_random_cells, maze, rng=rng), rng, steps=length, noise=noise,
                 patience=maze.max_steps, advance=advance)


def drive(env: Balls, driver: WaypointController, target: np.ndarray, draw: Callable[[int], np.ndarray],
          rng: np.random.Generator, *, steps: int, noise: float, patience: int,
          reward_target: bool = False, advance: Advance = lambda share: None) -> dict[str, np.ndarray]:
    """Drives the balls of `env` for `steps` steps, to `target` [C, 2] first and then to those of draw(n) -> [n, 2].

    patience: steps after which a target is given up. reward_target: rewards are for the present target, instead of
    `env.goal`. advance: told the share of each step. Returns observations [C, S + 1, O], actions, goals (the targets)
    [C, S, 2], rewards [C, S].
    """
    obs, target = env.state.copy(), target.copy()
    chains, age = len(obs), np.zeros(len(obs), int)
    observations, actions = np.empty((steps + 1, *obs.shape)), np.empty((steps, chains, 2))
    rewards, goals = np.empty((steps, chains)), np.empty((steps, chains, 2))
    observations[0] = obs
    for t in range(steps):
        goals[t] = target
        if reward_target:
            env.goal = target
        action = driver.act(obs, target)
        if noise:
            action = np.clip(action + noise * rng.standard_normal(action.shape), -1.0, 1.0)
        offset = obs[:, :2] - target
        # As in D4RL, arrival is tested before the step, and the step's action still heads for the old target.
        done = np.flatnonzero((offset[:, 0] ** 2 + offset[:, 1] ** 2 < REACHED**2) | (age >= patience))
        obs, rewards[t] = env.step(action)
        actions[t], observations[t + 1] = action, obs
        age += 1
        if len(done):
            target[done], age[done] = draw(len(done)), 0
        advance(1 / steps)
    packed = {"observations": observations, "actions": actions, "goals": goals}
    return {name: array.swapaxes(0, 1).copy() for name, array in packed.items()} | {"rewards": rewards.T.copy()}


def _random_cells(maze: Maze, n: int, *, rng: np.random.Generator) -> np.ndarray:
    return maze.free_cells[rng.integers(len(maze.free_cells), size=n)].astype(float)
