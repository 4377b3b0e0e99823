"""Maze data: generated here, once, and kept as a Minari dataset like any other."""

from __future__ import annotations

import os
from typing import Any

from .episodes import pack
from .store import datasets_root, restore, verify_checksums
from .trajectories import ABOUT, read_metadata, save_episodes

DT = 0.01  # s, D4RL's maze2d: timestep .01, one physics step to a step of the environment

NAMES = {"observation_names": ["x", "y", "vx", "vy"], "action_names": ["fx", "fy"]}


def make_maze_dataset(
    maze: str = "umaze",
    *,
    steps: int = 1_000_000,
    noise: float = 0.5,
    seed: int = 0,
    chains: int | None = None,
    name: str | None = None,
    overwrite: bool = False,
    root: str | os.PathLike | None = None,
) -> str:
    """Generate `steps` transitions of a scripted driver in a maze, save them through Minari, return the dataset's name.

    noise: standard deviation of the action noise (.5 is what D4RL's released files were made with). chains: continuous
    trajectories, all of the same length; None: 1,000, or fewer where each would be shorter than 1,000 steps.
    An equal dataset that exists is left as it is; another one of that name needs `overwrite`.
    Positions in cells (metres), velocities in m/s, actions in [-1, 1]; infos hold "goal" [2], the target driven to.
    """
    from dforce import envs

    grid = envs.get_maze(maze)
    chains = chains or _chains(steps)
    settings = {"steps": steps, "noise": float(noise), "seed": seed, "chains": chains}
    about = {"maze": grid.name, "rows": list(grid.rows), "env": f"maze2d-{grid.name}", "dt": DT, **settings, **NAMES}
    name = name or _default_name(grid.name, noise)
    folder = restore(datasets_root(root) / name)
    if not overwrite and (folder / "data" / "metadata.json").exists() and read_metadata(folder).get(ABOUT) == about:
        verify_checksums(folder)
        return name
    if folder.exists() and not overwrite:  # before the work, not after it
        raise ValueError(
            f"dataset {name!r} exists at {folder} and was made otherwise: pass overwrite=True, or another name"
        )
    made = envs.generate(grid, steps=steps, noise=noise, chains=chains, seed=seed)
    episodes = pack(made["observations"], made["actions"], made["rewards"], infos={"goal": made["goals"]}, about=about)
    known = grid.name in envs.MAZES and envs.MAZES[grid.name].rows == grid.rows
    facts = _minari_facts(grid, noise) if known else {}
    save_episodes(name, episodes, overwrite=overwrite, root=root, **facts)
    return name


def _minari_facts(grid: Any, noise: float) -> dict[str, Any]:
    """What Minari keeps beside the arrays of a maze that is registered with Gymnasium."""
    return {
        "env": f"dforce/maze2d-{grid.name}-v1",
        "ref_min_score": grid.ref_min,
        "ref_max_score": grid.ref_max,
        "algorithm_name": f"waypoint controller, action noise {noise:g}",
        "author": "dforce",
        "description": f"D4RL's maze2d-{grid.name}, generated anew: one scripted driver, random targets.",
    }


def _chains(steps: int) -> int:
    """The most chains, up to 1,000, that divide `steps` and are at least 1,000 steps long each."""
    return next(n for n in range(max(1, min(1000, steps // 1000)), 0, -1) if steps % n == 0)


def _default_name(maze: str, noise: float) -> str:
    suffix = "" if noise == 0.5 else f"-noise{noise:g}".replace(".", "p")
    return f"dforce/maze2d-{maze}{suffix}-v1"
