"""Data sets of other robot libraries, read without them. A new layout is a module and a line in `reader_of`."""

import json
from collections.abc import Callable
from pathlib import Path

from dforce.data.episodes import Episodes
from dforce.data.robot_formats.diffusion_policy import ENDS, read_replay_buffer
from dforce.data.robot_formats.lerobot import read_lerobot
from dforce.data.robot_formats.robomimic import is_robomimic, read_robomimic
from dforce.data.robot_formats.zarr_arrays import is_zarr


def reader_of(path: Path) -> Callable[..., Episodes] | None:
    """What reads a folder or a file, as (path, infos=, subset=); None where no robot library lays data out so.

    ValueError for a part of such a data set, and for a folder of several.
    """
    if lerobot_root(path):
        return read_lerobot
    if is_robomimic(path):
        return read_robomimic
    return read_replay_buffer if is_zarr(path, ENDS) else None


def lerobot_root(path: Path) -> Path | None:
    """The path where it is a LeRobot data set. ValueError for a path in one, and for a folder of such."""
    around = [path, *list(path.absolute().parents)[:5], *(sorted(path.iterdir()) if path.is_dir() else ())]
    for folder in around:
        try:
            info = folder / "meta" / "info.json"
            lerobot = info.is_file() and "codebase_version" in json.loads(info.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, RecursionError):
            continue
        if lerobot and folder != path:
            raise ValueError(f"{path} is of the LeRobot data set {folder}: give that folder, which is read as a whole")
        if lerobot:
            return folder
    return None
