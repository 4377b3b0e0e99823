"""LeRobot data sets as Episodes, read without lerobot.

A LeRobot episode is S frames (o_t, a_t); Episodes have one observation more than actions. Nobody knows what a foreign
episode's last action led to: its last observation stands there again, so that every action is kept
(`about["last_observation"]` is "repeated"). In data that dforce wrote, an episode's last frame holds its last
observation, and its action is no data (meta/info.json says so): they are read back equal.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.columns import checked_column
from dforce.data.episodes import Episodes
from dforce.data.robot_formats.layout import LayoutError, inside, read_json, reading
from dforce.data.robot_formats.lerobot_cameras import lerobot_images
from dforce.data.robot_formats.lerobot_info import Entry, Feature, LeRobotInfo, read_entries, read_info, read_tasks
from dforce.data.robot_formats.parquet import column_values, read_table
from dforce.data.store import verify_checksums

ACTION, OBSERVATION = ("action", "actions"), ("observation", "state")  # the first word of a feature's key, up to a dot
TRACKS = ("episode_index", "frame_index", "timestamp", "index", "task_index")
FLAGS = {"terminations": "next.terminated", "truncations": "next.truncated"}
REWARD, DONE = "next.reward", "next.done"
OFF_BEAT = 1e-4  # seconds that a time stamp may be off its frame's time, as in lerobot; beside float32's rounding


def read_lerobot(root: Path, *, infos: Sequence[str] = (), subset: str | None = None) -> Episodes:
    """All episodes of a data set of version 2.0, 2.1 or 3.0, or those of one of its `splits` (subset).

    Features named action or action.* are joined to the actions, other numbers named observation.* (or state) to the
    observations, each a part of its own. dt is 1 / fps. infos: names of features, with or without `info.` or `next.` in
    front. task_index is always among the infos, the tasks' words in about["tasks"]. ValueError in one line.
    """
    verify_checksums(root)
    info = read_info(root)
    check_statistics(info)
    entries = _chosen(info, read_entries(info), subset)
    parts = {role: _vectors(info, role) for role in ("action", "observation")}
    extra = {name: _feature_named(info, name) for name in infos}
    flags = [key for key in (REWARD, DONE, *FLAGS.values()) if key in info.features]
    vectors = [each.key for features in parts.values() for each in features]
    columns = list(dict.fromkeys([*vectors, *flags, *extra.values()]))
    frames, places = _frames(info, entries, columns)
    lengths = np.array([entry.length for entry in entries], dtype=np.int64)
    keeps_last = bool(info.dforce.get("last_frame_is_observation"))
    with reading(root / "meta" / "info.json"):
        if keeps_last and lengths.min() < 2:
            raise ValueError("an episode has one frame, which is its last observation, and no action")
    observed, taken = _rows(lengths, keeps_last)
    nothing = np.zeros((lengths.sum(), 0), np.float32)  # of data whose observations are pictures alone
    joined = {role: np.concatenate([frames[each.key] for each in features], 1) if features else nothing
              for role, features in parts.items()}
    count = len(taken)
    rewards = checked_column(frames[REWARD][taken] if REWARD in frames else np.zeros(count, np.float32), count,
                             f"{root}: {REWARD}")
    ends = _ends(frames, taken, lengths - keeps_last, root)
    facts = {name: _row(frames[key][taken], info.features[key]) for name, key in extra.items()}
    about = info.dforce.get("about") or _about(info, parts)
    if not info.dforce or info.dforce.get("tasks"):
        facts["task_index"] = frames["task_index"][taken, 0].astype(np.int64)
    return Episodes(joined["observation"][observed], joined["action"][taken], rewards, *ends, lengths - keeps_last,
                    facts, {**about, "dataset": about.get("dataset", root.name)},
                    lerobot_images(info, entries, places, extra=int(not keeps_last)))


def _ends(frames: dict[str, np.ndarray], taken: np.ndarray, lengths: np.ndarray, root: Path
          ) -> tuple[np.ndarray, np.ndarray]:
    """Terminations and truncations [N]; where no column tells them apart, next.done at an episode's end terminates."""
    def flag(key: str) -> np.ndarray:
        return checked_column(frames[key][taken], len(taken), f"{root}: {key}", flag=True)

    last = np.zeros(len(taken), bool)
    last[np.cumsum(lengths) - 1] = True
    done = flag(DONE) & last if DONE in frames else np.zeros(len(taken), bool)
    terminated, truncated = (flag(key) if key in frames else None for key in FLAGS.values())
    return done if terminated is None else terminated, last & ~done if truncated is None else truncated


def _about(info: LeRobotInfo, parts: dict[str, list[Feature]]) -> dict[str, Any]:
    """Facts about a foreign data set."""
    names = {role: [name for each in features for name in each.columns()] for role, features in parts.items()}
    if len(parts["action"]) == 1:
        names["action"] = parts["action"][0].names or names["action"]
    robot = info.raw.get("robot_type")
    return {"dataset": info.root.name, "dt": 1 / info.fps, "observation_names": names["observation"],
            "action_names": names["action"], "tasks": read_tasks(info), "last_observation": "repeated",
            **({"robot": robot} if robot else {})}


def _chosen(info: LeRobotInfo, entries: list[Entry], subset: str | None) -> list[Entry]:
    """The episodes of a split, "begin:end" in meta/info.json."""
    if subset is None:
        return entries
    splits = info.raw.get("splits") or {}
    with reading(info.root / "meta" / "info.json"):
        if subset not in splits:
            raise LayoutError(f"{info.root} has no split {subset!r}, it has {', '.join(splits) or 'none'}")
        begin, _, end = str(splits[subset]).partition(":")
        chosen = [entry for entry in entries if int(begin or 0) <= entry.number < int(end or 2**62)]
    if not chosen:
        raise LayoutError(f"{info.root}: the split {subset!r} ({splits[subset]}) holds no episode")
    return chosen


def _vectors(info: LeRobotInfo, role: str) -> list[Feature]:
    """Features of numbers that make up the actions, or the observations."""
    words = ACTION if role == "action" else OBSERVATION
    named = [each for each in info.features.values() if each.key.partition(".")[0] in words and not each.is_camera]
    vectors = [each for each in named if _numeric(each)]
    left = [each.key for each in named if each not in vectors]
    left += [each.key for each in info.features.values() if each.depth] if role == "observation" else []
    if left:
        warnings.warn(f"{info.root.name}: {', '.join(left)} are left out (no numbers, or maps of depth)", stacklevel=3)
    if not vectors and (role == "action" or not info.cameras):
        raise LayoutError(f"{info.root} has no {role} of numbers among its features: {', '.join(info.features)}")
    return vectors


def _numeric(feature: Feature) -> bool:
    try:
        return np.dtype(feature.dtype).kind in "fiub"
    except TypeError:  # "video", "string"
        return False


def _feature_named(info: LeRobotInfo, name: str) -> str:
    """The key of a feature of numbers by its name, or by its name without `info.` or `next.`."""
    key = next((key for key in (f"info.{name}", name, f"next.{name}") if key in info.features), None)
    if key is None or not _numeric(info.features[key]):
        there = [each.key for each in info.features.values() if _numeric(each)]
        raise LayoutError(f"{info.root} has no feature {name!r} of numbers, it has {', '.join(there)}")
    return key


def _rows(lengths: np.ndarray, keeps_last: bool) -> tuple[np.ndarray, np.ndarray]:
    """Frames that are the observations [N + E], and frames that are the steps [N]."""
    frame = np.arange(lengths.sum())
    stop = np.cumsum(lengths)
    if keeps_last:
        return frame, np.delete(frame, stop - 1)
    return np.insert(frame, stop, stop - 1), frame


def _row(values: np.ndarray, feature: Feature) -> np.ndarray:
    """Numbers [rows, width] in the feature's shape; one number a row is [rows]."""
    return values[:, 0] if feature.shape == (1,) else values.reshape(len(values), *feature.shape)


def _frames(info: LeRobotInfo, entries: list[Entry], columns: list[str]
            ) -> tuple[dict[str, np.ndarray], list[tuple[Path, int, int]]]:
    """Columns [frames, width] of all entries, one after another; file, first row and rows of each entry."""
    places, parts = [], {name: list[np.ndarray]() for name in [*columns, *TRACKS]}
    done = None
    for entry in entries:
        if done is None or done[0] != entry.data:
            done = entry.data, dict(_read(entry.data, info, columns))
        rows = _of_episode(done[1], entry, info.fps)
        places.append((entry.data, rows.start, entry.length))
        for name, kept in parts.items():
            kept.append(done[1][name][rows])
    return {name: np.concatenate(kept) for name, kept in parts.items()}, places


def _read(path: Path, info: LeRobotInfo, columns: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Columns of one parquet file, each as wide as its feature."""
    table = read_table(path, [*columns, *TRACKS])
    for name in dict.fromkeys([*columns, *TRACKS]):
        if name not in table.column_names:
            raise LayoutError(f"{path} lacks the column {name}, which meta/info.json lists; restore the data set")
        values = column_values(table, name, path)
        width = info.features[name].width if name in info.features else 1
        if len(values) and values.shape[1] != width:
            raise LayoutError(f"{path}: {name} has {values.shape[1]} numbers a frame, meta/info.json says {width}")
        yield name, values


def _of_episode(frames: dict[str, np.ndarray], entry: Entry, fps: float) -> slice:
    """The rows of an episode in its file, checked: all of its frames, in order, in time."""
    where = f"{entry.data}: episode {entry.number}"
    rows = np.flatnonzero(frames["episode_index"][:, 0] == entry.number)
    if len(rows) != entry.length:
        raise LayoutError(f"{where} has {len(rows)} frames, the list of episodes says {entry.length}")
    kept = slice(int(rows[0]), int(rows[-1]) + 1)
    count = np.arange(entry.length)
    if kept.stop - kept.start != entry.length or (frames["frame_index"][kept, 0] != count).any():
        raise LayoutError(f"{where} is not in the order of its frame_index; restore the data set")
    if entry.first is not None and (frames["index"][kept, 0] != entry.first + count).any():
        raise LayoutError(f"{where}: its index runs from {frames['index'][rows[0], 0]}, the list of episodes says "
                          f"{entry.first}")
    stamps = frames["timestamp"][kept, 0].astype(np.float64)
    off = np.abs(stamps - count / fps)
    late = ~(off <= OFF_BEAT + 2 * np.finfo(np.float32).eps * np.abs(stamps))
    if late.any():
        t = int(np.argmax(late))
        raise LayoutError(f"{where}: frame {t} has the timestamp {stamps[t]:g} s, at {fps:g} frames a second it is "
                          f"{t / fps:g} s: correct fps in meta/info.json, or bring the frames to an even pace")
    return kept


def check_statistics(info: LeRobotInfo) -> None:
    """LayoutError where meta/stats.json is of features of another shape: data and metadata do not belong together."""
    path = inside(info.root, "meta/stats.json")
    if not path.exists():
        return
    for key, statistics in read_json(path).items():
        if key in info.features and not info.features[key].is_camera:
            with reading(path):
                size = np.size(statistics["mean"])
            if size != info.features[key].width:
                raise LayoutError(f"{path}: {key} has statistics of {size} numbers, meta/info.json says "
                                  f"{info.features[key].width}")
