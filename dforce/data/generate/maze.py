"""Maze demonstrations, generated once and kept as Minari datasets."""

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dforce.data.episodes import Episodes, pack
from dforce.data.load import load_episodes
from dforce.data.minari import kept, save_episodes

Advance = Callable[[float], object]

DT = 0.01  # s, D4RL's maze2d: timestep .01, one physics step to a step of the environment

RELEASED_STEPS = {"medium": 2_000_000, "large": 4_000_000}  # of D4RL's files; 1,000,000 for the others

NAMES = {"observation_names": ["x", "y", "vx", "vy"], "action_names": ["fx", "fy"]}


@dataclass(frozen=True)
class MazeGeneration:
    """Settings of generated maze2d demonstrations, as for `make_maze_dataset`.

    maze: a name of `MAZES`, a text grid, or a file that holds one. steps: None is as many as D4RL has. dense: make the
    data set of `make_dense_dataset` from the sparse one, which is kept. name: None is dforce/maze2d-<maze>-v1.
    """

    maze: str
    steps: int | None = None
    noise: float = 0.5
    dense: bool = False
    seed: int = 0
    name: str | None = None
    overwrite: bool = False

    def make(self, advance: Advance = lambda share: None) -> str:
        """Generates the data set unless an equal one exists; returns its name. ValueError for what is no maze.

        advance: told the shares of the simulation as they are done, 1 in all.
        """
        from dforce.envs import MAZES, get_maze

        maze = self.maze.removeprefix("maze2d-").removeprefix("multi2d-")
        name = self.name
        if maze not in MAZES:
            maze = "/".join(get_maze(maze).rows)
            name = name or _default_name(custom_name(maze), self.noise)
        if self.dense and self.name:
            name = _inserted("sparse", self.name)
        sparse = make_maze_dataset(maze=maze, steps=self.steps or RELEASED_STEPS.get(maze, 1_000_000), noise=self.noise,
                                   seed=self.seed, name=name, overwrite=self.overwrite, advance=advance)
        if not self.dense:
            return sparse
        return make_dense_dataset(sparse, self.name or _inserted("dense", sparse), overwrite=self.overwrite)


def make_maze_dataset(maze: str = "umaze", *, steps: int = 1_000_000, noise: float = 0.5, seed: int = 0,
                      chains: int | None = None, name: str | None = None, overwrite: bool = False,
                      root: str | os.PathLike | None = None, advance: Advance = lambda share: None) -> str:
    """Generates `steps` transitions of a scripted driver in a maze as a Minari dataset; returns the dataset's name.

    noise: standard deviation of the action noise (.5 is D4RL's). chains: continuous trajectories of one length; None:
    1,000, or fewer where each would be shorter than 1,000 steps. An equal dataset that exists is left as it is; another
    one of that name is replaced only with `overwrite`. Positions in cells (metres), velocities in m/s, actions in
    [-1, 1]; infos hold "goal" [2], the present target.
    """
    from dforce import envs

    grid = envs.get_maze(maze)
    chains = chains or _chains(steps)
    settings = {"steps": steps, "noise": float(noise), "seed": seed, "chains": chains}
    about = {"maze": grid.name, "rows": list(grid.rows), "env": f"maze2d-{grid.name}", "dt": DT, **settings, **NAMES}
    known = grid.name in envs.MAZES and envs.MAZES[grid.name].rows == grid.rows
    return _kept(name or _default_name(grid.name, noise), about,
                 lambda: _episodes(envs.generate(grid, steps=steps, noise=noise, chains=chains, seed=seed,
                                                  advance=advance)),
                 overwrite=overwrite, root=root, **(_minari_facts(grid, noise) if known else {}))


def make_pointmaze_dataset(size: str, *, steps: int, name: str, seed: int = 0, overwrite: bool = False,
                           root: str | os.PathLike | None = None, advance: Advance = lambda share: None) -> str:
    """As `make_maze_dataset`, in Gymnasium-Robotics' PointMaze; rewards: 1 within .45 of the target."""
    from dforce.envs.maze.pointmaze import IDS, pointmaze, pointmaze_demonstrations

    settings = {"steps": steps, "noise": 0.5, "seed": seed, "chains": _chains(steps)}
    about = {"maze": size, "rows": list(pointmaze(size).maze.rows), "env": f"pointmaze-{size}", "dt": DT, **settings,
             **NAMES}
    facts = {"algorithm_name": "waypoint controller, action noise 0.5", "author": "dforce",
             "description": f"{IDS[size]}, observations without goals: one scripted driver, random targets."}
    return _kept(name, about, lambda: _episodes(pointmaze_demonstrations(
        size, steps=steps, noise=0.5, chains=settings["chains"], seed=seed, advance=advance)),
        overwrite=overwrite, root=root, **facts)


def make_ogbench_dataset(size: str, *, episodes: int, length: int, name: str, seed: int = 0, overwrite: bool = False,
                         root: str | os.PathLike | None = None, advance: Advance = lambda share: None) -> str:
    """OGBench's pointmaze-<size>-navigate (medium, large, giant) by its published recipe (`envs.maze.ogbench`).

    Positions in metres, a cell is 4; actions displace by .2 m; infos hold "goal" [2]; rewards: 1 within 1 m of it.
    """
    from dforce.envs.maze.ogbench import ACTION_NOISE, DT, ogbench, ogbench_demonstrations

    about = {"maze": size, "rows": list(ogbench(size).maze.rows), "env": f"ogbench-{size}", "dt": DT,
             "steps": episodes * length, "noise": ACTION_NOISE, "seed": seed, "chains": episodes,
             "observation_names": ["x", "y"], "action_names": ["dx", "dy"]}
    facts = {"algorithm_name": "oracle sub-goals, action noise 0.5", "author": "dforce",
             "description": f"OGBench's pointmaze-{size}-navigate, generated anew by its recipe."}
    return _kept(name, about,
                 lambda: _episodes(ogbench_demonstrations(size, episodes=episodes, length=length, seed=seed,
                                                          advance=advance)),
                 overwrite=overwrite, root=root, **facts)


def make_dense_dataset(sparse: str, name: str, *, overwrite: bool = False) -> str:
    """Saves the maze data set `sparse` with rewards exp(-distance to the goal) of the next state, as D4RL's dense."""
    from dforce.envs import MAZES, maze_from_text, maze_reward

    episodes = load_episodes(sparse, infos=["goal"])
    about = {**episodes.about, "dense": True}
    about.pop("dataset")
    maze = maze_from_text("/".join(about["rows"]), name=about["maze"])
    after = np.delete(episodes.observations[:, :2], episodes.first_observation, axis=0)
    rewards = maze_reward(after, maze.goal, dense=True)
    facts = {"env": f"dforce/maze2d-{maze.name}-dense-v1", "ref_min_score": MAZES[maze.name].dense_ref_min,
             "ref_max_score": MAZES[maze.name].dense_ref_max} if maze.name in MAZES else {}
    return _kept(name, about, lambda: replace(episodes, rewards=rewards), overwrite=overwrite, root=None, **facts)


def _kept(name: str, about: dict, generate: Callable[[], Episodes], *, overwrite: bool,
          root: str | os.PathLike | None, **facts: Any) -> str:
    """Saves the episodes of generate() as dataset `name`, unless an equal one is `kept`; returns `name`."""
    if not kept(name, about, overwrite=overwrite, root=root):
        save_episodes(name, replace(generate(), about=about), overwrite=overwrite, root=root, **facts)
    return name


def _episodes(made: dict[str, Any]) -> Episodes:
    return pack(made["observations"], made["actions"], made["rewards"], infos={"goal": made["goals"]})


def _minari_facts(grid: Any, noise: float) -> dict[str, Any]:
    """Minari's metadata for a maze that is registered with Gymnasium."""
    return {"env": f"dforce/maze2d-{grid.name}-v1", "ref_min_score": grid.ref_min, "ref_max_score": grid.ref_max,
            "algorithm_name": f"waypoint controller, action noise {noise:g}", "author": "dforce",
            "description": f"D4RL's maze2d-{grid.name}, generated anew: one scripted driver, random targets."}


def _chains(steps: int) -> int:
    """The largest number of chains, up to 1,000, that divides `steps` into chains of at least 1,000 steps."""
    return next(n for n in range(max(1, min(1000, steps // 1000)), 0, -1) if steps % n == 0)


def custom_name(grid: str) -> str:
    """The name of a maze of one's own: a digest of its text grid, rows separated by '/'."""
    return f"custom-{hashlib.sha256(grid.encode()).hexdigest()[:8]}"


def _default_name(maze: str, noise: float) -> str:
    suffix = "" if noise == 0.5 else f"-noise{noise:g}".replace(".", "p")
    return f"dforce/maze2d-{maze}{suffix}-v1"


def _inserted(word: str, name: str) -> str:
    """dforce/mine-v0 -> dforce/mine-<word>-v0."""
    return re.sub(r"(-v\d+)?$", rf"-{word}\1", name, count=1)
