"""D4RL's HDF5 layout, read and written without d4rl, which cannot be imported beside today's MuJoCo."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dforce.core.files import replacing
from dforce.data.arrays import Hdf5Error, checked_array, open_hdf5, part, read_part
from dforce.data.columns import checked_column, checked_rows
from dforce.data.episodes import Episodes, joined_ranges

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")
EPISODE = "infos/episode"  # an addition to D4RL: number of each row's episode
JUMP = 1e-3  # of a column's range: two observations further apart are not the same


def read_d4rl(path: str | os.PathLike, *, cut_at: Sequence[str] | None = None,
              max_length: int | None = None) -> Episodes:
    """Reads a D4RL file. Row t is (o_t, a_t, r_t). o_{t+1} is in `next_observations` where the file has them.

    Without them it is in the next row, and an episode's last action is dropped, for nobody knows what it led to.
    cut_at: flags that end an episode, of "terminals" and "timeouts". None is both, but in maze2d files, where timeouts
    mark a target reached within one continuous trajectory (D4RL issue 85): nothing is cut there, and a warning says so.
    A file that numbers its episodes (`infos/episode`) is cut by those. Rows whose next observation is not the next
    row's end an episode too. max_length: longer episodes are cut into pieces of at most so many steps.
    """
    rows, infos = _read_rows(path)
    count, after = len(rows["observations"]), rows.get("next_observations")
    ends = _ends(rows, infos, cut_at, path)
    bounds = np.union1d(np.flatnonzero(ends) + 1, [count])
    begins = np.append(0, bounds[:-1])
    first, stop = _pieces(begins, bounds, max_length, known=after is not None)
    if not len(first):
        raise ValueError(f"{path} has no two consecutive rows of one episode: {count} rows, {int(ends.sum())} ends")
    observations = rows["observations"]
    if after is not None:  # the state after an episode's last step becomes a row of its own
        observations = np.insert(observations, bounds, after[bounds - 1], axis=0)
    shift = np.searchsorted(bounds, first, side="right") if after is not None else 0  # rows that were put in before
    steps = joined_ranges(first, stop - 1)
    kept = {key: rows[key][steps] for key in KEYS[1:]}
    facts = {key: value[steps] for key, value in infos.items() if key not in ("qpos", "qvel", "episode")}
    return Episodes(observations[joined_ranges(first + shift, stop + shift)], kept["actions"], kept["rewards"],
                    kept["terminals"], kept["timeouts"], stop - 1 - first, facts, {"dataset": Path(path).stem})


def _read_rows(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of KEYS, next observations where there are some, and the numbers of infos/ that have a row a step."""
    with open_hdf5(path) as file:
        missing = [key for key in KEYS if key not in list(file) and key != "timeouts"]
        if missing:
            raise Hdf5Error(f"it lacks {', '.join(missing)}; D4RL files have {', '.join(KEYS)}, it has {sorted(file)}")
        raw = {key: read_part(file, key) for key in (*KEYS, "next_observations") if key in list(file)}
        infos = _infos(part(file, "infos")) if "infos" in list(file) else {}
    rows = {"observations": checked_rows(raw.pop("observations"), None, f"{path}: observations")}
    count = len(rows["observations"])
    for key, value in raw.items():
        name = f"{path}: {key}"
        rows[key] = (checked_rows(value, count, name) if key in ("actions", "next_observations") else
                     checked_column(value, count, name, flag=key != "rewards"))
    if rows["observations"].shape[1] != rows.get("next_observations", rows["observations"]).shape[1]:
        raise ValueError(f"{path}: next_observations have another width than observations")
    if "timeouts" not in rows:
        warnings.warn(f"{path} has no timeouts: what a time limit ended is not cut, if it has no next_observations",
                      stacklevel=3)
        rows["timeouts"] = np.zeros(count, dtype=bool)
    return rows, {key: value for key, value in infos.items() if len(value) == count}


def _infos(group: Any) -> dict[str, np.ndarray]:
    """The arrays of numbers in infos/; groups in it are left out."""
    import h5py

    parts = ((key, part(group, key)) for key in group)
    return {key: checked_array(node)[()] for key, node in parts
            if isinstance(node, h5py.Dataset) and node.ndim and node.dtype.kind in "fiub"}


def write_d4rl(path: str | os.PathLike, episodes: Episodes) -> None:
    """Writes episodes in D4RL's layout, completely or not at all, with checksums; `read_d4rl` reads them back.

    An episode gets one more row for the observation after its last action, with zero action and reward; of several
    episodes that row has `timeouts` set, and `infos/episode` numbers them. Observations of width 4 are (qpos, qvel),
    too.
    """
    import h5py

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
    data[EPISODE] = np.repeat(np.arange(len(episodes)), lengths + 1)
    with replacing(Path(path)) as partial, h5py.File(partial, "w") as file:
        for key, value in data.items():
            file.create_dataset(key, data=value, chunks=True, fletcher32=True)


def _ends(rows: dict[str, np.ndarray], infos: dict[str, np.ndarray], cut_at: Sequence[str] | None,
          path: str | os.PathLike) -> np.ndarray:
    """[rows] bool, True in the last row of an episode; see `read_d4rl`."""
    unknown = set(cut_at or ()) - {"terminals", "timeouts"}
    if unknown or isinstance(cut_at, str):
        raise ValueError(f"cut_at is a list of flags, terminals and timeouts, got {cut_at!r}")
    if "episode" in infos:
        number = checked_column(infos["episode"], len(rows["rewards"]), f"{path}: {EPISODE}")
        return np.append(np.diff(number) != 0, True)
    flags = ("terminals", "timeouts") if cut_at is None else cut_at
    named = "goal" in infos or Path(path).name.startswith(("maze2d", "multi2d"))
    shape = rows["observations"].shape[1], rows["actions"].shape[1]
    maze2d = named and shape == (4, 2) and not rows["terminals"].any()  # (x, y, vx, vy), two forces
    if cut_at is None and rows["timeouts"].any() and maze2d:
        warnings.warn(f"{path} is taken for D4RL's maze2d, whose timeouts mark targets reached: nothing is cut there "
                      "(if they end episodes, give cut_at=[terminals,timeouts])", stacklevel=3)
        flags = ("terminals",)
    ends = np.any([rows[key] for key in flags], axis=0) if flags else np.zeros(len(rows["rewards"]), bool)
    if "next_observations" in rows:
        apart = np.abs(rows["next_observations"][:-1].astype(np.float64) - rows["observations"][1:])
        jump = np.append((apart > JUMP * np.ptp(rows["observations"].astype(np.float64), axis=0)).any(1), False)
        if (jump & ~ends).any():
            warnings.warn(f"{path}: {int((jump & ~ends).sum())} rows without a flag have a next observation that is "
                          "not the next row's; they end an episode too", stacklevel=3)
        ends |= jump
    return ends


def _pieces(first: np.ndarray, stop: np.ndarray, max_length: int | None,
            known: bool) -> tuple[np.ndarray, np.ndarray]:
    """Row ranges [first, stop) of pieces with a step or more; known: each episode has one row more than given."""
    stop = stop + known
    if max_length is not None:
        if max_length < 1:
            raise ValueError(f"max_length is a number of steps, at least 1, got {max_length}")
        cuts = [np.arange(a, b - 1, max_length) for a, b in zip(first, stop, strict=True)]
        stop = np.concatenate([np.minimum(cut + max_length + 1, b) for cut, b in zip(cuts, stop, strict=True)])
        first = np.concatenate(cuts)
    keep = stop - first > 1
    return first[keep], stop[keep]
