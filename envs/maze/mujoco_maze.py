"""The Gymnasium environment: D4RL's maze2d, one maze, with MuJoCo's own bindings, drawn without OpenGL."""
from __future__ import annotations

from typing import Any

import gymnasium
import mujoco
import numpy as np
from numpy.typing import ArrayLike

from .batched import DAMPING, DENSITY, DT, GEAR, MARGIN, MAX_SPEED, RADIUS
from .draw import draw_maze
from .frame import CELL_OFFSET
from .grid import Maze, get_maze, maze_reward, sample_goals, sample_starts

BALL_ORIGIN = 1.2          # the ball's joints are zero at the world point (1.2, 1.2)


def maze_xml(maze: Maze) -> str:
    """MJCF of the maze after D4RL's `point_maze`.

    Contacts are listed as pairs with one margin each, which is 0.002 in every version of MuJoCo. D4RL writes it on
    every geom; of two such margins MuJoCo 2 takes the larger, MuJoCo 4 the sum.
    """
    ij = np.argwhere(maze.walls)
    shift = BALL_ORIGIN - CELL_OFFSET
    walls = "\n    ".join(f'<geom name="wall_{i}_{j}" type="box" size=".5 .5 .2" pos="{i + shift:g} {j + shift:g} 0"/>'
                          for i, j in ij)
    pairs = "\n    ".join(f'<pair geom1="ball" geom2="wall_{i}_{j}" condim="1" margin="{MARGIN:g}"/>' for i, j in ij)
    joints = "".join(f'<joint name="ball_{name}" type="slide" axis="{axis}" damping="{DAMPING:g}"/>'
                     for name, axis in (("x", "1 0 0"), ("y", "0 1 0")))
    motors = "".join(f'<motor joint="ball_{name}" ctrlrange="-1 1" ctrllimited="true" gear="{GEAR:g}"/>'
                     for name in "xy")
    return f"""<mujoco model="maze2d">
  <option timestep="{DT:g}" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default><geom contype="0" conaffinity="0"/></default>
  <worldbody>
    <body name="ball" pos="{BALL_ORIGIN:g} {BALL_ORIGIN:g} 0">
      <geom name="ball" type="sphere" size="{RADIUS:g}" density="{DENSITY:g}"/>{joints}
    </body>
    {walls}
  </worldbody>
  <contact>
    {pairs}
  </contact>
  <actuator>{motors}</actuator>
</mujoco>"""


class MazeEnv(gymnasium.Env):
    """One ball in one maze. Observation (x, y, vx, vy) float64, action [2] in [-1, 1] (clipped), 100 steps a second.

    maze: a name of `MAZES`, a text grid ('#', 'O', 'G') or a `Maze`. dense: reward exp(-distance) instead of 1 within
    0.5 of the goal, always of the new state. Episodes never terminate; they are truncated after `max_steps` (default:
    the maze's own). `reset(options=...)` takes "goal": (x, y) or "random" (a uniform cell +-0.1), else the maze's goal,
    and "start": (x, y), at rest, else D4RL's random start. `info` holds "goal" [2] and "success".
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / DT)}

    def __init__(self, maze: str | Maze = "umaze", *, dense: bool = False, max_steps: int | None = None,
                 render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is not known; use 'rgb_array' or None")
        self.maze, self.dense, self.render_mode = get_maze(maze), dense, render_mode
        self.max_steps = self.maze.max_steps if max_steps is None else max_steps
        self.model = mujoco.MjModel.from_xml_string(maze_xml(self.maze))
        self.data = mujoco.MjData(self.model)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.goal = np.asarray(self.maze.goal, float)
        self.elapsed = 0

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        options = dict(options or {})
        start, goal = options.pop("start", None), options.pop("goal", None)
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; known: 'goal' ((x, y) or 'random'), 'start'")
        state = sample_starts(self.maze, 1, self.np_random)[0]
        if start is not None:
            state = np.concatenate([self._point("start", start), np.zeros(2)])
        if isinstance(goal, str) and goal == "random":
            self.goal = sample_goals(self.maze, 1, self.np_random)[0]
        else:
            self.goal = self._point("goal", self.maze.goal if goal is None else goal)
        mujoco.mj_resetData(self.model, self.data)
        self.set_state(state)
        self.elapsed = 0
        return self._observation(), self._info()

    def step(self, action: ArrayLike) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step of 0.01 s. The speed on each axis is clipped to 5 before it, so that at most 5.2 is observed."""
        action = np.asarray(action, float)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action}; want two finite numbers in [-1, 1]")
        self.data.ctrl[:] = np.clip(action, -1.0, 1.0)
        self.data.qvel[:] = np.clip(self.data.qvel, -MAX_SPEED, MAX_SPEED)
        mujoco.mj_step(self.model, self.data)
        self.elapsed += 1
        reward = float(maze_reward(self.data.qpos, self.goal, dense=self.dense))
        return self._observation(), reward, False, self.elapsed >= self.max_steps, self._info()

    def set_state(self, state: ArrayLike) -> None:
        """Sets the state (x, y, vx, vy) and clears the solver's warm start: the next step depends on nothing older."""
        state = np.asarray(state, float)
        self.data.qpos[:], self.data.qvel[:] = state[:2], state[2:]
        self.data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(self.model, self.data)

    def render(self) -> np.ndarray | None:
        """uint8 [H, W, 3]; the row index (x) grows downwards, the column index (y) to the right, as in the text."""
        if self.render_mode is None:
            return None
        return draw_maze(self.maze, self.data.qpos, self.goal)

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])

    def _info(self) -> dict[str, Any]:
        return {"goal": self.goal.copy(), "success": bool(maze_reward(self.data.qpos, self.goal))}

    def _point(self, what: str, value: ArrayLike) -> np.ndarray:
        point = np.asarray(value, float)
        if point.shape != (2,) or not self.maze.is_free(point):
            raise ValueError(f"{what} {value!r} is not a point (x, y) in a free cell of maze {self.maze.name!r}; free "
                             f"cells (row, column): {self.maze.free_cells.tolist()}")
        return point
