"""Frames: where the cells of a maze lie in observed positions."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CELL_OFFSET = 0.2          # D4RL: cell (i, j) is centred at (i - 0.2, j - 0.2)


@dataclass(frozen=True)
class Frame:
    """position (x, y) = origin + unit * axes @ (i, j), the centre of cell (i, j); a bijection of the plane.

    axes: two rows (of x, of y) with one +-1 each: whether an axis runs along rows or columns, and its direction.
    origin: the centre of cell (0, 0). unit: side of a cell. touch: a wall pushes a ball whose
    centre is nearer to it. goal_radius: the sparse reward is 1 within it. All in the environment's unit of length.
    """

    axes: tuple[tuple[int, int], tuple[int, int]] = ((1, 0), (0, 1))
    origin: tuple[float, float] = (-CELL_OFFSET, -CELL_OFFSET)
    unit: float = 1.0
    touch: float = 0.1 + 0.002
    goal_radius: float = 0.5

    def __post_init__(self) -> None:
        if abs(round(float(np.linalg.det(np.array(self.axes))))) != 1 or np.abs(self.axes).sum() != 2:
            raise ValueError(f"axes {self.axes} are no two different axes of a grid; want two rows with one +-1 each")
        if self.unit <= 0:
            raise ValueError(f"unit={self.unit} is the side of a cell; want a length above 0")

    def grid(self, position: ArrayLike) -> np.ndarray:
        """Positions [..., 2] in cells: (row, column), integers at the centres of cells."""
        offset = (np.asarray(position, float) - self.origin) / self.unit
        return offset if self.axes == ((1, 0), (0, 1)) else offset @ np.array(self.axes, float)

    def position(self, grid: ArrayLike) -> np.ndarray:
        """The inverse of `grid`: (row, column) [..., 2] to positions [..., 2]."""
        return np.asarray(grid, float) @ (self.unit * np.array(self.axes, float).T) + self.origin


D4RL = Frame()
