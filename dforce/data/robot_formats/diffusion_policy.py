"""Diffusion Policy's replay buffers (zarr) as Episodes, read without zarr or its library.

data/<key> are arrays of all steps, meta/episode_ends the step at which each episode ends. Row t is (o_t, a_t): an
episode's last observation stands there again behind its last action, as for LeRobot. Layout: its ReplayBuffer.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.columns import checked_rows
from dforce.data.episodes import Episodes
from dforce.data.minari_pictures import EpisodePictures
from dforce.data.robot_formats.layout import LayoutError
from dforce.data.robot_formats.zarr_arrays import Store, ZarrArray, zarr_array

ENDS = "meta/episode_ends/.zarray"
ACTIONS = ("action", "actions")
REWARDS = ("reward", "rewards")
APART = (*REWARDS, "timestamp", "done", "dones")  # arrays that are no observation


@dataclass(frozen=True)
class ZarrCamera:
    """Pictures in an array [T, H, W, C], uint8, or floats of 0..255. ends: [E], the step at which each episode ends."""

    array: ZarrArray
    ends: np.ndarray

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.array.shape[1:]

    def read(self, episode: int, index: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]: pictures of an episode by number; behind the last one the last one."""
        begin = self.ends[episode - 1] if episode else 0
        rows = self.array.rows(np.minimum(begin + index, self.ends[episode] - 1))
        if rows.dtype == np.uint8:
            return rows
        if not (np.isfinite(rows).all() and rows.min() >= 0 and rows.max() <= 255):
            raise LayoutError(f"{self.array.store.path}: {self.array.name} has numbers outside of 0..255")
        return np.rint(rows).astype(np.uint8)


def read_replay_buffer(path: Path, *, infos: Sequence[str] = (), subset: str | None = None) -> Episodes:
    """All episodes of a buffer, a folder or a zip file. infos: names of arrays in data, of which each is an info then.

    Arrays [T, ...] other than the action's are parts of the observation; [T, H, W, 1 or 3] are pictures of a camera.
    dt is the median step of data/timestamp where there is one. ValueError in one line.
    """
    if subset is not None:
        raise LayoutError(f"{path}: a replay buffer of Diffusion Policy names no subsets, got {subset!r}")
    store = Store(path, ENDS)
    keys = sorted(name.removesuffix("/.zarray") for name in store.names("data") if name.endswith("/.zarray"))
    arrays = {key: zarr_array(store, f"data/{key}") for key in keys}
    lengths = _lengths(zarr_array(store, ENDS.removesuffix("/.zarray")), arrays)
    ends, steps = np.cumsum(lengths), int(lengths.sum())
    action = next((key for key in ACTIONS if key in arrays), None)
    if action is None or set(infos) - set(keys):
        lost = "action" if action is None else sorted(set(infos) - set(keys))[0]
        raise LayoutError(f"{path} has no data/{lost}, it has {', '.join(keys) or 'nothing'}")
    cameras = {key: each for key, each in arrays.items()
               if len(each.shape) == 4 and each.shape[3] in (1, 3) and min(each.shape) > 0}
    parts = {key: _whole(each, steps) for key, each in arrays.items()
             if key not in cameras and key not in (action, *APART, *infos)}
    names = [f"observation.{key}[{i}]" for key, values in parts.items() for i in range(values.shape[1])]
    observed = np.concatenate([*parts.values(), np.zeros((steps, 0), np.float32)], 1)
    last = np.isin(np.arange(steps), ends - 1)
    rewards = [_whole(arrays[key], steps)[:, 0] for key in REWARDS if key in arrays]
    about: dict[str, Any] = {"dataset": path.name.partition(".")[0], "observation_names": names,
                             "last_observation": "repeated", **_pace(arrays, steps, last)}
    images = {key: EpisodePictures(ZarrCamera(each, ends), lengths + 1) for key, each in cameras.items()}
    return Episodes(observed[np.insert(np.arange(steps), ends, ends - 1)], _whole(arrays[action], steps),
                    rewards[0] if rewards else np.zeros(steps, np.float32), np.zeros(steps, bool), last, lengths,
                    {key: arrays[key].rows(np.arange(steps)) for key in infos}, about, images)


def _whole(array: ZarrArray, steps: int) -> np.ndarray:
    """An array's rows as vectors, [steps, width]."""
    return checked_rows(array.rows(np.arange(steps)).reshape(steps, -1), steps, f"{array.store.path}: {array.name}")


def _lengths(stored: ZarrArray, arrays: dict[str, ZarrArray]) -> np.ndarray:
    """Steps of each episode. LayoutError where they are none, or more than an array has."""
    path = stored.store.path
    ends = stored.rows(np.arange(len(stored))).astype(np.int64)
    lengths = np.diff(ends, prepend=0)
    if not len(ends) or lengths.min() < 1:
        raise LayoutError(f"{path}: meta/episode_ends must rise from episode to episode, got {ends[:8].tolist()}")
    short = {key: len(each) for key, each in arrays.items() if len(each) < ends[-1]}
    if short:
        key = min(short)
        raise LayoutError(f"{path}: data/{key} has {short[key]} rows, meta/episode_ends goes up to {ends[-1]}")
    return lengths


def _pace(arrays: dict[str, ZarrArray], steps: int, last: np.ndarray) -> dict[str, float]:
    """{"dt": seconds} by data/timestamp; a warning where the steps are uneven."""
    if "timestamp" not in arrays or steps < 2 or last[:-1].all():
        return {}
    gaps = np.diff(_whole(arrays["timestamp"], steps)[:, 0])[~last[:-1]]
    dt = float(np.median(gaps))
    if not dt > 0:
        return {}
    if np.abs(gaps - dt).max() > dt / 2:
        warnings.warn(f"{arrays['timestamp'].store.path.name}: steps last {gaps.min():.3g} to {gaps.max():.3g} s; they "
                      f"are taken for {dt:.3g} s each", stacklevel=4)
    return {"dt": dt}
