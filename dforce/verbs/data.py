"""`dforce data maze`: generate demonstrations into the local Minari store."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from typing import Any

from dforce.run import RunFolder

KINDS = ("maze",)


def run(cfg: Any, folder: RunFolder) -> None:
    """Generates the data set that cfg describes; the data goes to the Minari store, the record into `folder`."""
    if cfg.kind not in KINDS:
        raise ValueError(f"data of kind {cfg.kind!r} cannot be generated; kinds: {', '.join(KINDS)}")
    from dforce.data.maze import RELEASED_STEPS, make_maze_dataset

    maze = read_maze(cfg.maze)
    steps = cfg.steps or RELEASED_STEPS.get(maze, 1_000_000)
    settings = {"steps": steps, "noise": cfg.noise, "seed": cfg.seed}
    sparse = _inserted("sparse", cfg.name) if cfg.dense and cfg.name else cfg.name
    name = make_maze_dataset(maze=maze, name=sparse or _own_name(maze, cfg.noise), overwrite=cfg.overwrite, **settings)
    if cfg.dense:
        name = make_dense(name, cfg.name or _inserted("dense", name), overwrite=cfg.overwrite)
    print(f"dataset {name}; to learn from it: dforce train data={name}")


def read_maze(maze: str) -> str:
    """A maze's name or its text grid, which may stand in a file. ValueError for what is neither."""
    from dforce.envs import MAZES, get_maze

    return maze if maze in MAZES else "/".join(get_maze(maze).rows)


def _own_name(maze: str, noise: float) -> str | None:
    """A name that no other grid has, for a maze of one's own; None for the known ones, which have names."""
    from dforce.envs import MAZES, get_maze

    if maze in MAZES:
        return None
    digest = hashlib.sha256("/".join(get_maze(maze).rows).encode()).hexdigest()[:8]
    suffix = "" if noise == 0.5 else f"-noise{noise:g}".replace(".", "p")
    return f"dforce/maze2d-custom-{digest}{suffix}-v1"


def _inserted(word: str, name: str) -> str:
    """dforce/mine-v0 -> dforce/mine-dense-v0."""
    return re.sub(r"(-v\d+)?$", rf"-{word}\1", name, count=1)


def make_dense(sparse: str, name: str, *, overwrite: bool = False) -> str:
    """The data set `sparse` with the reward exp(-distance to the maze's goal) of the next state, saved as `name`.

    The trajectories are the same, as in D4RL, whose dense files are its sparse ones with other rewards. An equal data
    set that exists is left as it is; ValueError for another one of that name, unless `overwrite`.
    """
    import numpy as np

    from dforce.data import load_episodes, save_episodes
    from dforce.data.store import datasets_root, restore, verify_checksums
    from dforce.data.trajectories import ABOUT, read_metadata
    from dforce.envs import MAZES, maze_from_text, maze_reward

    episodes = load_episodes(sparse, infos=["goal"])
    about = {**episodes.about, "dense": True}
    about.pop("dataset")
    known = restore(datasets_root() / name)
    if not overwrite and (known / "data" / "metadata.json").exists() and read_metadata(known).get(ABOUT) == about:
        verify_checksums(known)
        return name
    maze = maze_from_text("/".join(about["rows"]), name=about["maze"])
    facts = {}
    if maze.name in MAZES:
        low, high = MAZES[maze.name].dense_ref_min, MAZES[maze.name].dense_ref_max
        facts = {"env": f"dforce/maze2d-{maze.name}-dense-v1", "ref_min_score": low, "ref_max_score": high}
    after = np.delete(episodes.observations[:, :2], episodes.first_observation, axis=0)
    rewards = maze_reward(after, maze.goal, dense=True)
    save_episodes(name, replace(episodes, rewards=rewards, about=about), overwrite=overwrite, **facts)
    return name
