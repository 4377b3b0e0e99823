"""Maze environments: grids as data, a MuJoCo environment, a batched numpy stepper, a scripted driver, a generator.

Importing this module registers "dforce/maze2d-<maze>-v1" (sparse reward) and "dforce/maze2d-<maze>-dense-v1" with
Gymnasium for every maze of `MAZES`; MuJoCo itself is only imported when such an environment (or `MazeEnv`) is used.
`gymnasium.make("dforce/maze2d-umaze-v1", maze="#####/#OOG#/#####")` takes a grid of your own.
"""
import gymnasium

from .batched import BatchedMaze, dynamics
from .controller import WaypointController
from .draw import draw_maze
from .generate import generate
from .maze import MAZES, Maze, get_maze, maze_from_text, maze_reward, normalized_score, sample_goals, sample_starts
from .world import World, as_world

__all__ = ["MAZES", "BatchedMaze", "Maze", "MazeEnv", "WaypointController", "World", "as_world", "draw_maze",
           "dynamics", "generate", "get_maze", "maze_from_text", "maze_reward", "normalized_score", "sample_goals",
           "sample_starts"]

for _name in MAZES:
    for _suffix, _dense in (("", False), ("-dense", True)):
        _id = f"dforce/maze2d-{_name}{_suffix}-v1"
        if _id not in gymnasium.registry:          # a second import of the module would warn of overriding
            gymnasium.register(_id, entry_point=f"{__name__}.mujoco_maze:MazeEnv",
                               kwargs={"maze": _name, "dense": _dense})


def __getattr__(name: str) -> object:
    if name == "MazeEnv":
        from .mujoco_maze import MazeEnv
        return MazeEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
