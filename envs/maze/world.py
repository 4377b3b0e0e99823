"""A maze as a world of episodes: the geometry, how balls are moved in it, and what its actions mean."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .batched import Balls, BatchedMaze
from .controller import D_GAIN, P_GAIN
from .draw import draw_maze
from .grid import Maze


@dataclass(frozen=True)
class World:
    """One kind of maze, ready to be filled with balls: an `Env` (envs/protocol.py) with a `maze`.

    maze: the geometry, in the frame of the observations. copies: n -> n balls. observation_width: 4, (x, y, vx, vy),
    or 2, (x, y). gains: of the position and of the velocity error. Those of D4RL's controller for a ball that is
    pushed; a world whose actions are displacements has others, the second one 0.
    """

    maze: Maze
    copies: Callable[[int], Balls]
    observation_width: int = 4
    gains: tuple[float, float] = (P_GAIN, -D_GAIN)
    action_width: ClassVar[int] = 2
    goal_width: ClassVar[int] = 2

    @property
    def name(self) -> str:
        return self.maze.name

    @property
    def max_steps(self) -> int:
        return self.maze.max_steps

    def position(self, observation: np.ndarray) -> np.ndarray:
        """(x, y) [..., 2] of observations [..., O]."""
        return observation[..., :2]

    def arrived(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Bool [...]: within the radius around the goal [..., 2] in which the sparse reward is 1."""
        offset = observation[..., :2] - goal
        return (offset**2).sum(-1) <= self.maze.frame.goal_radius**2

    def check(self, starts: np.ndarray, goals: np.ndarray) -> None:
        """ValueError unless starts [N, O] and goals [N, 2] lie in free cells."""
        for what, position in (("start", self.position(starts)), ("goal", goals)):
            free = self.maze.is_free(position)
            if not free.all():
                raise ValueError(f"{what} {position[~free][0].tolist()} is not in a free cell of maze {self.name!r}; "
                                 f"free cells (row, column): {self.maze.free_cells.tolist()}")

    def draw(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3]: `draw_maze` of a ball observed at `observation` [O] and its goal [2]."""
        return draw_maze(self.maze, self.position(observation), goal)


def as_world(place: Maze | World) -> World:
    """A world as it is; a maze as the world of D4RL's ball in it, `BatchedMaze`."""
    if isinstance(place, World):
        return place
    return World(place, lambda n: BatchedMaze(place, n))
