"""Worlds as planning takes them: a maze stands for D4RL's ball in it, and starts and goals are checked."""

import numpy as np

from dforce.envs import Env, Maze, World, as_world


def as_env(place: Maze | Env) -> Env:
    """A world as it is; a maze as the world of D4RL's ball in it."""
    return as_world(place) if isinstance(place, Maze) else place


def maze_of(world: Env) -> Maze | None:
    """The maze of a world: for pictures of it, the scripted controller and scores of walls. None where it has none."""
    return world.maze if isinstance(world, World) else None


def episode_arrays(place: Maze | Env, starts: np.ndarray, goals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts [N, O] and goals [N, G] in float64, one goal [G] repeated for all; ValueError where they cannot be."""
    world = as_env(place)
    width, goal_width = world.observation_width, world.goal_width
    starts, goals = np.asarray(starts, dtype=np.float64), np.asarray(goals, dtype=np.float64)
    if starts.ndim != 2 or starts.shape[1] != width or len(starts) == 0:
        raise ValueError(f"starts must be [N, {width}] with N >= 1, observations of {world.name}, got {starts.shape}")
    if goals.shape not in ((goal_width,), (len(starts), goal_width)):
        raise ValueError(f"goals must be [{len(starts)}, {goal_width}], or [{goal_width}] for one goal shared by all, "
                         f"got {goals.shape}")
    goals = np.broadcast_to(goals, (len(starts), goal_width))
    world.check(starts, goals)
    return starts, goals
