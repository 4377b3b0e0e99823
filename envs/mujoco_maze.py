"""Minari data sets recorded by earlier versions name their environment as `dforce.envs.mujoco_maze:MazeEnv`."""
from .maze.mujoco_maze import MazeEnv

__all__ = ["MazeEnv"]
