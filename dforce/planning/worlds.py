"""Worlds as planning takes them (a maze stands for D4RL's ball in it); starts, goals and requests, checked."""

from typing import Any

import numpy as np

from dforce.envs import Env, Maze, World, as_world

Request = tuple[np.ndarray, np.ndarray]


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
        raise ValueError(f"goals must be [{len(starts)}, {goal_width}], or [{goal_width}] for all, got {goals.shape}")
    goals = np.broadcast_to(goals, (len(starts), goal_width))
    world.check(starts, goals)
    return starts, goals


def checked_request(obs: Any, goal: Any, remaining: int, layout: dict[str, Any]) -> Request:
    """(obs [N, O], goal [N, G]) as arrays, of the width that the `layout` of the checkpoint says; else ValueError."""
    first, last = layout["observation"]
    obs, goal = _numbers("obs", obs), _numbers("goal", goal)
    if obs.ndim != 2 or obs.shape[1] != last - first or not len(obs):
        raise ValueError(f"obs must be [N, {last - first}], a row an episode, got {[*obs.shape]}; one is obs[None]")
    if goal.ndim != 2 or len(goal) != len(obs) or not goal.shape[1]:
        raise ValueError(f"goal must be [N, G] with the {len(obs)} rows of obs, got {[*goal.shape]}")
    if remaining < 1:
        raise ValueError(f"remaining must be >= 1 environment steps, got {remaining}")
    return obs, goal


def _numbers(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"{name} must hold real numbers, got {values.dtype}")
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ValueError(f"{name} must be finite, got {values[place]} at {[*place]}")
    return values
