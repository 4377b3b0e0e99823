"""D4RL's HDF5 layout, read and written without d4rl, which cannot be imported beside today's MuJoCo."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.episodes import Episodes, joined_ranges

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
EPISODE = "infos/episode"  # an addition to D4RL: number of each row's episode, where a file holds several


def read_d4rl(path: str | os.PathLike, *, cut_at: Sequence[str] = ("terminals",),
              max_length: int | None = None) -> Episodes:
    """Reads a D4RL file. Row t is (o_t, a_t, r_t), o_{t+1} is in the next row: an episode's last action is dropped.

    cut_at: flags that end an episode. In maze2d `timeouts` mark a target reached within one continuous trajectory, not
    an end (D4RL issue 85): they are kept as truncations, and nothing is cut there. For locomotion data pass
    ("terminals", "timeouts"). max_length: longer episodes are cut into pieces of at most so many steps. Rewards are
    those of the present observation (D4RL computes them from obs[t], issue 194). ValueError, which names the file, if
    it is damaged or lacks a key.
    """
    rows, infos = _read_rows(path)
    ends = _ends(rows, infos.pop("episode", None), cut_at)
    count = len(ends)
    bounds = np.union1d(np.flatnonzero(ends) + 1, [count])
    first, stop = _pieces(np.append(0, bounds[:-1]), bounds, max_length)
    if not len(first):
        raise ValueError(f"{path} has no two consecutive rows of one episode: {count} rows, {int(ends.sum())} ends")
    steps = joined_ranges(first, stop - 1)
    kept = {key: rows[key][steps] for key in KEYS[1:]}
    facts = {key: value[steps] for key, value in infos.items()
             if np.ndim(value) and len(value) == count and key not in ("qpos", "qvel")}
    return Episodes(rows["observations"][joined_ranges(first, stop)], kept["actions"], kept["rewards"].reshape(-1),
                    kept["terminals"].astype(bool).reshape(-1), kept["timeouts"].astype(bool).reshape(-1),
                    stop - 1 - first, facts, {"dataset": Path(path).stem})


def _read_rows(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of KEYS and those of infos/, as stored."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in KEYS if key not in file and key != "timeouts"]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}; D4RL files have {', '.join(KEYS)}, this one "
                                 f"{sorted(file)}")
            rows = {key: file[key][()] for key in KEYS if key in file}
            infos = {key: value[()] for key, value in file.get("infos", {}).items() if isinstance(value, h5py.Dataset)}
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no HDF5 file ({error})") from error
    rows.setdefault("timeouts", np.zeros(len(rows["rewards"]), dtype=bool))
    return rows, infos


def write_d4rl(path: str | os.PathLike, episodes: Episodes) -> None:
    """Writes episodes in D4RL's layout, completely or not at all; `read_d4rl` reads them back.

    D4RL has no place for the observation after the last action: an episode gets one more row for it, with zero action
    and reward. Where there are several episodes, that row has `timeouts` set, and `infos/episode` numbers them.
    Observations of width 4 are maze2d's (qpos, qvel) and are stored as such too. Blocks have checksums.
    """
    lengths, many = episodes.lengths, len(episodes) > 1
    steps = np.arange(episodes.steps) + np.repeat(np.arange(len(episodes)), lengths)  # rows with an action
    last = np.cumsum(lengths + 1) - 1

    def widen(values: np.ndarray, fill: Any = None) -> np.ndarray:
        wide = np.zeros((episodes.steps + len(episodes), *values.shape[1:]), values.dtype)
        wide[steps] = values
        wide[last] = wide[last - 1] if fill is None else fill
        return wide

    data = {"observations": episodes.observations, "actions": widen(episodes.actions, 0),
            "rewards": widen(episodes.rewards, 0), "terminals": widen(episodes.terminations, False),
            "timeouts": widen(episodes.truncations, many),
            **{f"infos/{key}": widen(value) for key, value in episodes.infos.items()}}
    if episodes.observations.shape[1] == 4:
        data |= {"infos/qpos": episodes.observations[:, :2], "infos/qvel": episodes.observations[:, 2:]}
    if many:
        data[EPISODE] = np.repeat(np.arange(len(episodes)), lengths + 1)
    _write_atomically(Path(path), data)


def _write_atomically(path: Path, data: dict[str, np.ndarray]) -> None:
    import h5py

    partial = path.with_name(f"{path.name}.partial")
    try:
        with h5py.File(partial, "w") as file:
            for key, value in data.items():
                file.create_dataset(key, data=value, chunks=True, fletcher32=True)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _ends(rows: dict[str, np.ndarray], number: np.ndarray | None, cut_at: Sequence[str]) -> np.ndarray:
    """[rows] bool, True in the last row of an episode: where `number` changes, or where a flag is set if it is None."""
    unknown = set(cut_at) - {"terminals", "timeouts"}
    if unknown:
        raise ValueError(f"cut_at names flags, 'terminals' and 'timeouts', got {sorted(unknown)}")
    if number is not None:
        return np.append(np.diff(number) != 0, True)
    ends = np.zeros(len(rows["observations"]), dtype=bool)
    for key in cut_at:
        ends |= rows[key].astype(bool).reshape(-1)
    return ends


def _pieces(first: np.ndarray, stop: np.ndarray, max_length: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Row ranges [first, stop) of pieces with at least one step; two pieces of an episode share a row."""
    if max_length is not None:
        if max_length < 1:
            raise ValueError(f"max_length is a number of steps, at least 1, got {max_length}")
        cuts = [np.arange(a, b - 1, max_length) for a, b in zip(first, stop, strict=True)]
        stop = np.concatenate([np.minimum(cut + max_length + 1, b) for cut, b in zip(cuts, stop, strict=True)])
        first = np.concatenate(cuts)
    keep = stop - first > 1
    return first[keep], stop[keep]
