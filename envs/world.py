"""A world: where episodes are played. The geometry, how N balls are moved in it, and what its actions mean."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .batched import BatchedMaze
from .controller import D_GAIN, P_GAIN
from .maze import Maze


class Copies(Protocol):
    """n balls in n copies of a world: `BatchedMaze` is one. Both arrays are plain and settable."""

    state: np.ndarray    # [n, O] what is observed: position (x, y) first, then velocity where there is one
    goal: np.ndarray     # [n, 2]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves all under actions [n, 2]; observations [n, O] and sparse rewards [n] of the states stepped into."""


@dataclass(frozen=True)
class World:
    """One kind of maze, ready to be filled with balls.

    maze: the geometry, in the frame of the observations. copies: n -> n balls. width: columns of an observation, O.
    gains: what steers at a point p at velocity v: clip(gain_p (p - x) + gain_d (v - vx), -1, 1), in actions a unit of
    length and of speed. Those of D4RL's controller for a ball that is pushed; a world whose actions are displacements
    has its own, without the second part.
    """

    maze: Maze
    copies: Callable[[int], Copies]
    width: int = 4
    gains: tuple[float, float] = (P_GAIN, -D_GAIN)


def as_world(place: Maze | World) -> World:
    """A world as it is; a maze as the world of D4RL's ball in it, `BatchedMaze`."""
    if isinstance(place, World):
        return place
    return World(place, lambda n: BatchedMaze(place, n))
