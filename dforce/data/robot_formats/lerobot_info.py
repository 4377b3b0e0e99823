"""The metadata of a LeRobot data set, v2.0, v2.1 or v3.0: its features, and where every episode lies.

v3.0 keeps many episodes in one parquet and one mp4 (`meta/episodes/*/*.parquet` tells which part of them is whose);
v2 keeps one parquet and one mp4 an episode. Layout: LeRobot's `LeRobotDatasetMetadata`, version 3.0.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dforce.data.robot_formats.layout import LayoutError, counted, inside, read_json, read_lines, reading
from dforce.data.robot_formats.parquet import column_values, read_table

OWN = "dforce"  # key of meta/info.json in data sets that dforce wrote
CAMERA = ("observation.images.", "observation.")  # in front of a camera's name
WIDTH = 65_536  # numbers of a feature, at most


class Feature(NamedTuple):
    """A column of the frames. names: of its numbers, as many as `width`; None where the file names none."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: list[str] | None
    depth: bool = False

    @property
    def width(self) -> int:
        return math.prod(self.shape)

    @property
    def is_camera(self) -> bool:
        return self.dtype in ("video", "image")

    @property
    def camera(self) -> str:
        """The name without what stands in front of it."""
        return next((self.key.removeprefix(head) for head in CAMERA if self.key.startswith(head)), self.key)

    def columns(self) -> list[str]:
        """Names of its numbers: observation.state[shoulder], or numbered."""
        return [f"{self.key}[{name}]" for name in self.names or range(self.width)]


class Entry(NamedTuple):
    """An episode. first: `index` of its first frame in the data set, None in v2, which does not say.

    film: camera's key -> its video file and the time, in seconds, at which the episode begins there.
    """

    number: int
    length: int
    tasks: list[str]
    data: Path
    first: int | None
    films: dict[str, tuple[Path, float]]


@dataclass(frozen=True)
class LeRobotInfo:
    """meta/info.json. dforce: what dforce noted in data that it wrote, {} in other data."""

    root: Path
    version: int
    fps: float
    features: dict[str, Feature]
    raw: dict[str, Any] = field(repr=False)

    @property
    def dforce(self) -> dict[str, Any]:
        return self.raw.get(OWN) or {}

    @property
    def cameras(self) -> list[Feature]:
        """Features that are pictures, without maps of depth."""
        return [each for each in self.features.values() if each.is_camera and not each.depth]


def read_info(root: Path) -> LeRobotInfo:
    """meta/info.json of a data set, checked. LayoutError for versions that are not read, and for what is damaged."""
    path = inside(root, "meta/info.json")
    raw = read_json(path)
    with reading(path):
        version = str(raw["codebase_version"])
        if version.split(".")[0] not in ("v2", "v3"):
            raise LayoutError(f"{root} is a LeRobot data set of version {version}; v2.0, v2.1 and v3.0 are read: "
                              "convert it with lerobot's own script")
        fps = raw["fps"]
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < 1e6:
            raise ValueError(f"fps is {fps!r}, wanted is a positive number")
        if not isinstance(raw.get(OWN) or {}, dict):
            raise TypeError(f"{OWN} is no JSON object")
        features = {key: _feature(key, value) for key, value in raw["features"].items()}
    return LeRobotInfo(root, int(version[1]), float(fps), features, raw)


def _feature(key: str, value: dict[str, Any]) -> Feature:
    shape = tuple(counted(side, f"a side of {key}", 1, 10**6) for side in value["shape"] or [1])
    dtype, names = str(value["dtype"]), _names(value.get("names"))
    if dtype not in ("video", "image") and math.prod(shape) > WIDTH:
        raise ValueError(f"{key} has {math.prod(shape):,} numbers a frame, at most {WIDTH:,} are read")
    notes = {**(value.get("video_info") or {}), **(value.get("info") or {})}
    depth = bool(notes.get("is_depth_map") or notes.get("video.is_depth_map"))
    return Feature(key, dtype, shape, names if len(set(names)) == math.prod(shape) == len(names) else None, depth)


def _names(value: Any) -> list[str]:
    """Names in any of the forms in use: a list, a list in a list, {"motors": [...]}, none."""
    if isinstance(value, dict):
        return [name for inner in value.values() for name in _names(inner)]
    if isinstance(value, list):
        return [name for inner in value for name in _names(inner)]
    return [] if value is None else [str(value)]


def read_tasks(info: LeRobotInfo) -> list[str]:
    """What the robot was told to do, in words, by task_index."""
    if info.version == 2:
        path = inside(info.root, "meta/tasks.jsonl")
        rows = [(row.get("task_index"), row.get("task")) for row in read_lines(path)] if path.exists() else []
    else:
        path = inside(info.root, "meta/tasks.parquet")
        table = read_table(path)
        texts = [each.name for each in table.schema if str(each.type) in ("string", "large_string")]
        if "task_index" not in table.column_names or not texts:
            raise LayoutError(f"{path} has the columns {table.column_names}, wanted are task_index and task")
        words = table.column(texts[0]).to_pylist()
        rows = list(zip(map(int, column_values(table, "task_index", path)[:, 0]), words, strict=True))
    with reading(path):
        tasks = dict(rows)
        return [str(tasks[number]) for number in range(len(rows))]


def read_entries(info: LeRobotInfo) -> list[Entry]:
    """All episodes in the order of their numbers. LayoutError where they are not those that meta/info.json declares."""
    entries = sorted(_v2(info) if info.version == 2 else _v3(info), key=lambda entry: entry.number)
    with reading(info.root / "meta"):
        if not entries:
            raise ValueError("it lists no episode")
        if len({entry.number for entry in entries}) != len(entries):
            raise ValueError("an episode is listed twice")
        declared = info.raw.get("total_episodes", len(entries)), info.raw.get("total_frames")
        steps = sum(entry.length for entry in entries)
        if declared not in ((len(entries), steps), (len(entries), None)):
            raise ValueError(f"info.json declares {declared[0]} episodes of {declared[1]} frames in all, the list of "
                             f"episodes has {len(entries)} of {steps}")
    return entries


def _v2(info: LeRobotInfo) -> list[Entry]:
    path = inside(info.root, "meta/episodes.jsonl")
    entries = []
    for row in read_lines(path):
        with reading(path):
            number, length = counted(row["episode_index"], "episode_index"), counted(row["length"], "length", 1)
            chunk = number // counted(info.raw["chunks_size"], "chunks_size of info.json", 1)
            tasks = [str(task) for task in row.get("tasks") or []]
            places = {"episode_chunk": chunk, "episode_index": number}
            films = {each.key: (inside(info.root, str(info.raw["video_path"]), video_key=each.key, **places), 0.0)
                     for each in info.cameras if each.dtype == "video"}
            entries.append(Entry(number, length, tasks, inside(info.root, str(info.raw["data_path"]), **places), None,
                                 films))
    return entries


def _v3(info: LeRobotInfo) -> list[Entry]:
    paths = sorted((info.root / "meta" / "episodes").glob("*/*.parquet"))
    if not paths:
        raise LayoutError(f"{info.root / 'meta' / 'episodes'} has no parquet file; restore the data set, or download "
                          "it again")
    videos = [each.key for each in info.cameras if each.dtype == "video"]
    wanted = ["episode_index", "length", "tasks", "dataset_from_index", "dataset_to_index", "data/chunk_index",
              "data/file_index", *(f"videos/{key}/{name}" for key in videos
                                   for name in ("chunk_index", "file_index", "from_timestamp"))]
    entries = []
    for path in paths:
        table = read_table(inside(info.root, str(path.relative_to(info.root))), wanted)
        lacking = [name for name in wanted if name not in table.column_names and name != "tasks"]
        if lacking:
            camera = next((key for key in videos if lacking[0].startswith(f"videos/{key}/")), None)
            raise LayoutError(f"{path} lacks the column {lacking[0]}; " + (
                "restore the data set, or download it again" if camera is None else
                f"take the camera {camera} out of features in meta/info.json, or restore its videos"))
        with reading(path):
            entries += [_v3_entry(info, row, videos) for row in table.to_pylist()]
    return entries


def _v3_entry(info: LeRobotInfo, row: dict[str, Any], videos: list[str]) -> Entry:
    first, length = counted(row["dataset_from_index"], "dataset_from_index"), counted(row["length"], "length", 1)
    number = counted(row["episode_index"], "episode_index")
    if row["dataset_to_index"] != first + length:
        raise ValueError(f"episode {number} has {length} frames, from {first} to {row['dataset_to_index']}")
    films = {}
    for key in videos:
        chunk, file, begin = (row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index", "from_timestamp"))
        if not isinstance(begin, (int, float)) or not 0 <= begin < 1e7:
            raise ValueError(f"episode {number} begins at {begin!r} seconds of the video of {key}")
        films[key] = (inside(info.root, str(info.raw["video_path"]), video_key=key, chunk_index=counted(chunk, key),
                             file_index=counted(file, key)), float(begin))
    place = {name: counted(row[f"data/{name}"], name) for name in ("chunk_index", "file_index")}
    tasks = [str(task) for task in row.get("tasks") or []]
    return Entry(number, length, tasks, inside(info.root, str(info.raw["data_path"]), **place), first, films)
