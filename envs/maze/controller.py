"""D4RL's scripted waypoint controller, batched; it plans a new path for each episode and each goal."""
from __future__ import annotations

from functools import lru_cache

import numpy as np

from .frame import D4RL
from .grid import MOVES, Maze, get_maze

P_GAIN, D_GAIN = 10.0, -1.0        # action = 10 (waypoint - position) - velocity, D4RL's gains
REACHED = 0.1                      # m, a waypoint is reached within this distance
WAYPOINT_JITTER = 0.2              # cells, a waypoint on the way is shifted by -U(0, 0.2): towards the cell's centre


def steer(gains: tuple[float, float], offset: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """clip(gain_p offset + gain_d lag, -1, 1), actions [N, 2], for errors of position and velocity.

    offset: [N, 2], target minus position; lag: [N, 2], target minus velocity, or [N, 0] where none is observed.
    """
    push = gains[0] * offset
    if lag.shape[1]:
        push = push + gains[1] * lag
    return np.minimum(np.maximum(push, -1.0), 1.0)


@lru_cache(maxsize=64)
def next_cells(maze: Maze, moves: tuple[tuple[int, int], ...] = MOVES) -> np.ndarray:
    """Int [R * C, R * C, 2]: entry [target, here] is the next cell on a shortest path from here to the target.

    Cells are indexed i * C + j. Equals the greedy policy of value iteration (gamma < 1, reward for being at the
    target); of several best moves the first of `moves` is taken, as D4RL's argmax does. The entry of a wall is the
    wall.
    """
    rows, columns = maze.walls.shape
    table = np.tile(np.stack(np.divmod(np.arange(rows * columns), columns), -1), (rows * columns, 1, 1))
    for target in map(tuple, maze.free_cells):
        distance = _distances(maze, target)
        for i, j in maze.free_cells:
            neighbours = [(i + di, j + dj) for di, dj in moves]
            table[target[0] * columns + target[1], i * columns + j] = min(neighbours, key=distance.__getitem__)
    return table


def _distances(maze: Maze, target: tuple[int, int]) -> np.ndarray:
    """Float [R, C], moves to `target` through free cells; infinite in walls. Breadth first."""
    distance = np.full(maze.walls.shape, np.inf)
    distance[target] = 0
    frontier = [target]
    for i, j in frontier:                                                   # grows during the loop
        for cell in ((i + di, j + dj) for di, dj in MOVES):
            if not maze.walls[cell] and distance[cell] == np.inf:
                distance[cell] = distance[i, j] + 1
                frontier.append(cell)
    return distance


class WaypointController:
    """n scripted drivers. Each follows waypoints to its goal, the goal itself being the last one.

    `act` plans again for a row whose goal has changed or that `reset` has named. Call `reset` when an episode starts:
    otherwise a row follows the path of its last episode (the flaw in D4RL's expert, whose score is `ref_max`). Outside
    of D4RL's frame a waypoint is shifted by U(-0.1, 0.1) cells about the cell's centre. gains: of position and of
    velocity error (`World.gains`).
    """

    def __init__(self, maze: Maze | str, n: int, rng: np.random.Generator, *,
                 gains: tuple[float, float] = (P_GAIN, -D_GAIN)):
        self.maze, self.n, self.rng, self.gains = get_maze(maze), n, rng, gains
        self.goal = np.full((n, 2), np.nan)              # nan: differs from every goal, so the first `act` plans
        self.target = np.zeros(n, int)                   # index i * C + j of the goal's cell
        self.cell = np.zeros((n, 2), int)                # the cell of the current waypoint
        self.waypoint = np.zeros((n, 2))

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Forgets the plans of the rows in `mask` (bool [n]; None means all)."""
        self.goal[slice(None) if mask is None else np.asarray(mask, bool)] = np.nan

    def act(self, obs: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Actions [n, 2] in [-1, 1] for observations [n, 4] and goals [n, 2] (positions in free cells)."""
        goal = np.asarray(goal, float)
        new = np.flatnonzero((goal != self.goal).any(1))
        if len(new):
            self._plan(new, obs[new, :2], goal[new])
        offset = self.waypoint - obs[:, :2]
        action = steer(self.gains, offset, -obs[:, 2:])
        # As in D4RL, the action of this step is still towards the waypoint that was reached.
        reached = np.flatnonzero(offset[:, 0] ** 2 + offset[:, 1] ** 2 < REACHED**2)
        if len(reached):
            self._advance(reached)
        return action

    def _plan(self, rows: np.ndarray, position: np.ndarray, goal: np.ndarray) -> None:
        start, target = self.maze.cell(position), self.maze.cell(goal)
        for what, cells, free in (("position", position, self.maze.is_free(position)),
                                  ("goal", goal, self.maze.is_free(goal))):
            if not free.all():
                raise ValueError(f"{what} {cells[~free][0]} is in a wall of maze {self.maze.name!r}; free cells "
                                 f"(row, column): {self.maze.free_cells.tolist()}")
        self.goal[rows] = goal
        self.target[rows] = target[:, 0] * self.maze.walls.shape[1] + target[:, 1]
        self.cell[rows] = start
        self._advance(rows)

    def _advance(self, rows: np.ndarray) -> None:
        here = self.cell[rows, 0] * self.maze.walls.shape[1] + self.cell[rows, 1]
        cell = next_cells(self.maze)[self.target[rows], here]
        self.cell[rows] = cell
        final = cell[:, 0] * self.maze.walls.shape[1] + cell[:, 1] == self.target[rows]
        shifted = cell - self.rng.uniform(0.0, WAYPOINT_JITTER, cell.shape)
        if self.maze.frame != D4RL:
            shifted = self.maze.frame.position(shifted + WAYPOINT_JITTER / 2)
        self.waypoint[rows] = np.where(final[:, None], self.goal[rows], shifted)
