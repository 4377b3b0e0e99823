"""Episodes as a LeRobot data set, version 3.0, written without lerobot: whole and sealed, or not at all.

An episode of S steps becomes S + 1 frames: the last one holds the last observation, and its action stands still. The
key `dforce` of meta/info.json says so, and keeps `about`: `read_lerobot` reads back what was written.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.episodes import Episodes
from dforce.data.robot_formats import lerobot_statistics as statistics
from dforce.data.robot_formats.lerobot import DONE, FLAGS, REWARD
from dforce.data.robot_formats.lerobot_films import CHUNK, PLACE, FilmWriter, Pictures
from dforce.data.robot_formats.lerobot_info import OWN
from dforce.data.robot_formats.parquet import arrow
from dforce.data.store import write_checksums
from dforce.data.token_layout import parts_of

PATHS = {"data_path": f"data/{PLACE}.parquet", "video_path": f"videos/{{video_key}}/{PLACE}.mp4"}
TRACKS = {"timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
          "task_index": "int64"}


def write_lerobot(to: str | os.PathLike, episodes: Episodes, *, fps: float | None = None,
                  pictures: Pictures = "lossless", file_mb: float = 200) -> Path:
    """Writes episodes into a new folder, and returns it.

    fps: frames a second, None for 1 / about["dt"]. pictures: how films are encoded, both as H.264 in mp4; lossy ones
    are smaller, and change colours. file_mb: MB after which another parquet file or film begins. Infos become features
    info.<name> (success: next.success). ValueError for what LeRobot has no place for, and where `to` exists.
    """
    to = Path(to).expanduser()
    rate = fps or (1 / episodes.about["dt"] if episodes.about.get("dt") else None)
    if rate is None:
        raise ValueError("the episodes do not say how much time passes between two steps (about['dt']): give fps=")
    rate = round(rate) if abs(rate - round(rate)) < 1e-6 * rate else rate
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ValueError(f"{to} exists: choose another folder, or remove it")
    columns, names = _columns(episodes)
    arrow()
    to.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{to.name}.writing-", dir=to.parent))
    try:
        _write(stage, episodes, columns, names, rate, file_mb, pictures)
        write_checksums(stage)
        stage.chmod(0o777 & ~_umask())
        os.replace(stage, to)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    return to


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _columns(episodes: Episodes) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Key of a feature -> its values, a row a frame; and the names of its numbers."""
    observed, acted = episodes.names()
    parts, begin = parts_of(observed), 0
    columns: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    for part, width in parts.items():
        key = "observation.state" if len(parts) == 1 and part == "observation" else f"observation.{part}"
        columns[key] = episodes.observations[:, begin:begin + width]
        names[key] = observed[begin:begin + width]
        begin += width
    stop = np.cumsum(episodes.lengths)
    held = np.insert(np.arange(episodes.steps), stop, stop - 1)  # the step of a frame; the last one twice
    last = np.cumsum(episodes.lengths + 1) - 1
    columns["action"], names["action"] = episodes.actions[held], acted
    columns[REWARD] = episodes.rewards[held]
    columns[REWARD][last] = 0
    columns[DONE] = (episodes.terminations | episodes.truncations)[held]
    columns |= {key: getattr(episodes, flag)[held] for flag, key in FLAGS.items()}
    tasks = episodes.infos.get("task_index", np.zeros(episodes.steps, np.int64))
    columns["task_index"] = tasks[held].astype(np.int64)
    for name, values in episodes.infos.items():
        if name != "task_index":
            columns["next.success" if name == "success" else f"info.{name}"] = values[held]
    strange = [key for key in [*columns, *episodes.images] if "/" in key or "{" in key]
    if strange:
        raise ValueError(f"LeRobot has no place for a feature called {strange[0]!r}: rename it, or leave it out")
    return columns, names


def _features(columns: dict[str, np.ndarray], names: dict[str, list[str]]) -> dict[str, Any]:
    features = {key: {"dtype": str(values.dtype), "shape": list(values.shape[1:]) or [1], "names": names.get(key)}
                for key, values in columns.items() if key not in TRACKS}
    return features | {key: {"dtype": kind, "shape": [1], "names": None} for key, kind in TRACKS.items()}


def _write(root: Path, episodes: Episodes, columns: dict[str, np.ndarray], names: dict[str, list[str]], fps: float,
           mb: float, pictures: Pictures) -> None:
    """All files of the data set."""
    tasks = _tasks(episodes, int(columns["task_index"].max()))
    films = {key: FilmWriter(root, key, fps, mb, pictures)
             for key in (f"observation.images.{name}" for name in episodes.images)}
    listed, shards = [], _Shards(root / "data", mb)
    for e, frames in enumerate(_episodes(episodes, columns, fps)):
        begin, length = int(frames["index"][0]), len(frames["index"])
        place = shards.write(_table(frames))
        row = {"episode_index": e, "tasks": [tasks[i] for i in dict.fromkeys(frames["task_index"].tolist())],
               "length": length, "data/chunk_index": place[0], "data/file_index": place[1], "dataset_from_index": begin,
               "dataset_to_index": begin + length, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        each = {key: statistics.of_vectors(values.reshape(length, -1)) for key, values in frames.items()}
        for (key, film), seen in zip(films.items(), episodes.images.values(), strict=True):
            row |= film.write(pixels := seen[begin:begin + length])
            each[key] = statistics.of_pictures(pixels[statistics.sampled(length)])
        listed.append((row, each))
    shards.close()
    for film in films.values():
        film.close()
    seen_by = {key: film.facts(*seen.shape[1:3])
               for (key, film), seen in zip(films.items(), episodes.images.values(), strict=True)}
    info = {"codebase_version": "v3.0", "robot_type": episodes.about.get("robot"), "total_episodes": len(listed),
            "total_frames": len(columns["action"]), "total_tasks": len(tasks), "chunks_size": CHUNK,
            "data_files_size_in_mb": round(mb), "video_files_size_in_mb": round(mb), "fps": fps, "splits":
            {"train": f"0:{len(listed)}"}, **PATHS, "features": _features(columns, names) | seen_by,
            OWN: {"last_frame_is_observation": True, "tasks": "task_index" in episodes.infos, "about": episodes.about}}
    _write_meta(root / "meta", info if films else {**info, "video_path": None}, listed, tasks)


def _write_meta(root: Path, info: dict[str, Any], listed: list[tuple[dict[str, Any], dict[str, Any]]],
                tasks: list[str]) -> None:
    """The folder meta; listed: where each episode lies, and its statistics."""
    pa, place = arrow(), root / "episodes" / "chunk-000" / "file-000.parquet"
    place.parent.mkdir(parents=True)
    overall = {key: statistics.over_episodes([each[key] for _, each in listed]) for key in listed[0][1]}
    rows = [row | {f"stats/{key}/{name}": value.tolist()
                   for key, inner in each.items() for name, value in inner.items()} for row, each in listed]
    pa.parquet.write_table(pa.Table.from_pylist(rows), place)
    _write_tasks(tasks, root / "tasks.parquet")
    stats = {key: {name: value.tolist() for name, value in inner.items()} for key, inner in overall.items()}
    for name, content in {"info": info, "stats": stats}.items():
        (root / f"{name}.json").write_text(json.dumps(content, indent=4), encoding="utf-8")


def _tasks(episodes: Episodes, highest: int) -> list[str]:
    about = episodes.about
    tasks = [str(task) for task in about.get("tasks") or [about.get("task") or about.get("dataset") or "unknown"]]
    if highest >= len(tasks) or len(set(tasks)) < len(tasks):
        raise ValueError(f"task_index goes up to {highest}, about['tasks'] names {len(tasks)}: wanted is a text for "
                         "each, all different")
    return tasks


def _episodes(episodes: Episodes, columns: dict[str, np.ndarray], fps: float) -> Iterator[dict[str, np.ndarray]]:
    """The columns of one episode at a time, with those that tell where it is."""
    for e, (begin, length) in enumerate(zip(episodes.first_observation, episodes.lengths + 1, strict=True)):
        rows = slice(int(begin), int(begin + length))
        count = np.arange(length)
        yield {**{key: values[rows] for key, values in columns.items() if key != "task_index"},
               "timestamp": (count / fps).astype(np.float32), "frame_index": count, "episode_index": np.full(length, e),
               "index": begin + count, "task_index": columns["task_index"][rows]}


def _table(frames: dict[str, np.ndarray]) -> Any:
    """A row a frame; vectors are lists of fixed size, matrices lists of lists."""
    pa = arrow()
    table = {}
    for key, values in frames.items():
        column = pa.array(np.ascontiguousarray(values).reshape(-1))
        for side in (() if values.shape[1:] == (1,) else reversed(values.shape[1:])):
            column = pa.FixedSizeListArray.from_arrays(column, side) if values.ndim == 2 else pa.ListArray.from_arrays(
                np.arange(0, len(column) + 1, side, dtype=np.int32), column)
        table[key] = column
    return pa.table(table)


def _write_tasks(tasks: list[str], path: Path) -> None:
    """The texts by task_index; as pandas writes a frame whose index they are, as lerobot reads it."""
    pa = arrow()
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    described = [{"name": name, "field_name": name, "pandas_type": kind, "numpy_type": stored, "metadata": None}
                 for name, (kind, stored) in kinds.items()]
    index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    pandas = {"index_columns": ["task"], "column_indexes": [index], "columns": described, "pandas_version": "2.2.0",
              "creator": {"library": "pyarrow", "version": pa.__version__}}
    table = pa.table({"task_index": np.arange(len(tasks)), "task": tasks})
    pa.parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


class _Shards:
    """Parquet files in a folder, each begun when the one before has its size."""

    def __init__(self, root: Path, mb: float) -> None:
        self.root, self.limit, self.file = root, mb * 2**20, 0
        self.writer: Any = None
        self.path = root

    def write(self, table: Any) -> tuple[int, int]:
        """Appends a table as a row group; returns the numbers of folder and file."""
        if self.writer is not None and self.path.stat().st_size >= self.limit:
            self.close()
            self.file += 1
        place = divmod(self.file, CHUNK)
        if self.writer is None:
            self.path = self.root / f"{PLACE.format(chunk_index=place[0], file_index=place[1])}.parquet"
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = arrow().parquet.ParquetWriter(self.path, table.schema, compression="snappy")
        self.writer.write_table(table)
        return place

    def close(self) -> None:
        """Ends the last file."""
        if self.writer is not None:
            self.writer.close()
        self.writer = None
