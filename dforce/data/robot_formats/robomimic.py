"""robomimic's HDF5 files as Episodes, read without robomimic.

data/demo_<i> is an episode: actions, rewards, dones [S, ...], obs/<key> and, in some files, next_obs/<key>. Where there
is no next_obs, an episode's last observation stands there again, as for LeRobot. mask/<filter key> lists episodes.
Layout: robomimic's documentation, "Dataset Structure".
"""

import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.arrays import checked_array, open_hdf5, part, read_part
from dforce.data.columns import checked_column, checked_rows
from dforce.data.episodes import Episodes, pack
from dforce.data.minari_pictures import EpisodePictures
from dforce.data.robot_formats.layout import LayoutError, reading
from dforce.data.video.clip import natural

DEMO = re.compile(r"demo_\d+")
WIDTH = 65_536  # numbers of an array's row, at most


def is_robomimic(path: Path) -> bool:
    """Is it an HDF5 file with data/demo_<i>?"""
    if not path.is_file() or path.suffix not in (".hdf5", ".h5"):
        return False
    try:
        with open_hdf5(path) as file:
            return any(DEMO.fullmatch(name) for name in part(file, "data"))
    except (ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class Hdf5Camera:
    """Pictures obs/<key> of a file, read when they are asked for. demos: names of the episodes. size: (H, W, C)."""

    path: Path
    key: str
    demos: list[str]
    size: tuple[int, int, int]

    def read(self, episode: int, index: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]: pictures of an episode by number; behind the last one that of next_obs, or the last."""
        with open_hdf5(self.path) as file:
            demo = part(file, f"data/{self.demos[episode]}")
            stored = checked_array(part(demo, f"obs/{self.key}"))
            unique, inverse = np.unique(np.minimum(index, len(stored) - 1), return_inverse=True)
            frames = stored[unique][inverse]
            if frames.dtype != np.uint8 or frames.shape[1:] != self.size:
                raise LayoutError(f"{self.path}: {self.key} of {self.demos[episode]} is {frames.dtype} "
                                  f"{frames.shape[1:]}, of the first episode uint8 {self.size}")
            if "next_obs" in list(demo) and (behind := index >= len(stored)).any():
                with reading(f"{self.path}: {self.demos[episode]}"):
                    frames[behind] = checked_array(part(demo, f"next_obs/{self.key}"))[-1]
        return frames


def read_robomimic(path: Path, *, infos: Sequence[str] = (), subset: str | None = None) -> Episodes:
    """All episodes of a file in the order of their numbers, or those of a filter key (subset).

    Each array of obs is a part of the observation; uint8 [S, H, W, 1 or 3] are pictures of a camera. infos: names of
    arrays beside obs, such as states. dt is 1 / control_freq where env_args names one. ValueError in one line.
    """
    with open_hdf5(path) as file:
        data = part(file, "data")
        masks = _masks(file)
        demos = _chosen(data, masks, subset, path)
        sizes = _widths(part(data, demos[0]), path)
        cameras = {key: size for key, size in sizes.items() if isinstance(size, tuple)}
        vectors = {key: size for key, size in sizes.items() if isinstance(size, int)}
        played = []
        for name in demos:
            with reading(f"{path}: {name}"):
                played.append(_episode(part(data, name), vectors, infos))
        names = [f"observation.{key}[{i}]" for key, width in vectors.items() for i in range(width)]
        known = all("next_obs" in list(part(data, name)) for name in demos)
        about = {"dataset": path.stem, **_environment(data, path), "observation_names": names,
                 **({"filter_keys": list(masks)} if masks else {}),
                 **({} if known else {"last_observation": "repeated"})}
    columns = {key: [each[key] for each in played] for key in ("observations", "actions", "rewards", "terminations")}
    widths = {actions.shape[1] for actions in columns["actions"]}
    if len(widths) > 1:
        raise LayoutError(f"{path}: actions of {' and '.join(map(str, sorted(widths)))} numbers; each episode must "
                          "have as many")
    ends = [np.arange(len(done)) == len(done) - 1 for done in columns["terminations"]]
    images = {key: EpisodePictures(Hdf5Camera(path, key, demos, size), [len(each) + 1 for each in columns["actions"]])
              for key, size in cameras.items()}
    return pack(**columns, truncations=[end & ~done for end, done in zip(ends, columns["terminations"], strict=True)],
                infos={name: [each[name] for each in played] for name in infos}, about=about, images=images)


def _masks(file: Any) -> dict[str, list[str]]:
    """Filter key -> names of its episodes."""
    if "mask" not in list(file):
        return {}
    masks = {key: np.ravel(read_part(file, f"mask/{key}")) for key in part(file, "mask")}
    return {key: [name.decode() if isinstance(name, bytes) else str(name) for name in names]
            for key, names in masks.items()}


def _chosen(data: Any, masks: dict[str, list[str]], subset: str | None, path: Path) -> list[str]:
    """Names of the episodes to read, 2 before 10."""
    demos = sorted((name for name in data if DEMO.fullmatch(name)), key=natural)
    if subset is None:
        return demos
    if subset not in masks:
        raise LayoutError(f"{path} has no filter key {subset!r}, it has {', '.join(masks) or 'none'}")
    lost = [name for name in masks[subset] if name not in demos]
    if lost or not masks[subset]:
        raise LayoutError(f"{path}: the filter key {subset!r} names {lost[0] if lost else 'no episode'}"
                          f"{', which is not among the episodes' if lost else ''}")
    return sorted(set(masks[subset]), key=natural)


def _widths(demo: Any, path: Path) -> dict[str, int | tuple[int, int, int]]:
    """Key of obs -> how many numbers it has, or (H, W, C) for pictures."""
    if "obs" not in list(demo):
        raise LayoutError(f"{path} has no observations (obs) in {demo.name}: make them with robomimic's "
                          "dataset_states_to_obs.py")
    sizes: dict[str, int | tuple[int, int, int]] = {}
    left = []
    for key in part(demo, "obs"):
        array = part(demo, f"obs/{key}")
        shape, kind = tuple(getattr(array, "shape", ())), getattr(array, "dtype", np.dtype(object))
        if kind == np.uint8 and len(shape) == 4 and shape[3] in (1, 3) and min(shape) > 0:
            sizes[key] = shape[1:]
        elif kind.kind in "fiub" and shape and math.prod(shape[1:]) <= WIDTH:
            sizes[key] = math.prod(shape[1:])
        else:
            left.append(key)
    if left:
        warnings.warn(f"{path.name}: {', '.join(left)} are left out (neither numbers nor uint8 pictures)", stacklevel=4)
    return sizes


def _episode(demo: Any, vectors: dict[str, int], infos: Sequence[str]) -> dict[str, Any]:
    """One episode's arrays. ValueError or KeyError where they do not go together."""
    actions = checked_rows(read_part(demo, "actions"), None, "actions")
    steps, parts = len(actions), []
    after = part(demo, "next_obs") if "next_obs" in list(demo) else None
    declared = demo.attrs.get("num_samples", steps)
    if declared != steps:
        raise ValueError(f"num_samples is {declared}, it has {steps} actions")
    for key, width in vectors.items():
        values = np.asarray(read_part(demo, f"obs/{key}"))
        if len(values) != steps:
            raise ValueError(f"obs/{key} has {len(values)} rows, there are {steps} actions")
        values = values.reshape(steps, -1)
        if values.shape[1] != width:
            raise ValueError(f"obs/{key} has {values.shape[1]} numbers a row, in the first episode {width}")
        last = values[-1] if after is None else np.ravel(read_part(after, key)[-1])
        parts.append(np.concatenate([values, last[None]]))
    numbers = {key: read_part(demo, key) if key in list(demo) else np.zeros(steps, np.float32)
               for key in ("rewards", "dones")}
    done = checked_column(numbers["dones"], steps, "dones", flag=True) & (np.arange(steps) == steps - 1)
    return {**{name: checked_column(read_part(demo, name), steps, name, wide=True) for name in infos},
            "observations": np.concatenate(parts, 1) if parts else np.zeros((steps + 1, 0), np.float32),
            "actions": actions, "rewards": checked_column(numbers["rewards"], steps, "rewards"), "terminations": done}


def _environment(data: Any, path: Path) -> dict[str, Any]:
    """What env_args says: the name of the environment, and the time between two actions."""
    with reading(f"{path}: env_args"):
        arguments = json.loads(data.attrs.get("env_args") or "{}")
        rate = float((arguments.get("env_kwargs") or {}).get("control_freq") or 0)
        named = {"robomimic": {"env_name": str(arguments["env_name"])}} if "env_name" in arguments else {}
        return {**named, **({"dt": 1 / rate} if 0 < rate < 1e6 else {})}
