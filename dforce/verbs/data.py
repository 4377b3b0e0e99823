"""`dforce data maze`: generate demonstrations into the local Minari store."""

from __future__ import annotations

from typing import Any

from dforce.run import RunFolder

KINDS = ("maze",)


def run(cfg: Any, folder: RunFolder) -> None:
    """Generates the data set that cfg describes; the data goes to the Minari store, the record into `folder`."""
    if cfg.kind not in KINDS:
        raise ValueError(f"data of kind {cfg.kind!r} cannot be generated; kinds: {', '.join(KINDS)}")
    from dforce.data.maze import make_maze_dataset

    name = make_maze_dataset(
        maze=cfg.maze, steps=cfg.steps, noise=cfg.noise, seed=cfg.seed, name=cfg.name, overwrite=cfg.overwrite
    )
    print(f"dataset {name}; to learn from it: dforce train data={name}")
