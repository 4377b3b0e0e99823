"""Environments: `protocol.Env` is what the package asks of a world; mazes, walks (`envs.doom`), a robot (`envs.robot`).

Importing this module registers "dforce/maze2d-<maze>-v1" (sparse reward) and "dforce/maze2d-<maze>-dense-v1" with
Gymnasium for every maze of `MAZES`, and the tasks of `ROBOT_TASKS`; MuJoCo itself is only imported when such an
environment (or `MazeEnv`) is used.
`gymnasium.make("dforce/maze2d-umaze-v1", maze="#####/#OOG#/#####")` takes a grid of your own.
"""
import gymnasium

from .maze.batched import BatchedMaze, dynamics
from .maze.controller import WaypointController
from .maze.draw import draw_maze
from .maze.generate import generate
from .maze.grid import MAZES, Maze, get_maze, maze_from_text, maze_reward, normalized_score, sample_goals, sample_starts
from .maze.world import World, as_world
from .protocol import Copies, Env
from .robot import TASKS as ROBOT_TASKS

__all__ = ["MAZES", "ROBOT_TASKS", "BatchedMaze", "Copies", "Env", "Maze", "MazeEnv", "WaypointController", "World",
           "as_world", "draw_maze", "dynamics", "generate", "get_maze", "maze_from_text", "maze_reward",
           "normalized_score", "sample_goals", "sample_starts"]

for _name in MAZES:
    for _suffix, _dense in (("", False), ("-dense", True)):
        _id = f"dforce/maze2d-{_name}{_suffix}-v1"
        if _id not in gymnasium.registry:          # a second import of the module would warn of overriding
            gymnasium.register(_id, entry_point=f"{__name__}:MazeEnv", kwargs={"maze": _name, "dense": _dense})


def __getattr__(name: str) -> object:
    if name == "MazeEnv":
        from .maze.mujoco_maze import MazeEnv
        return MazeEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
