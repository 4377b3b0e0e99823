"""Pictures of LeRobot data sets, read when they are asked for: parts of mp4 films, or picture files in parquet columns.

Frame t of an episode is the one that its film shows at from_timestamp + t / fps. Every camera stays for itself.
"""

import io
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.minari_pictures import EpisodePictures
from dforce.data.pixels import PictureError, read_picture
from dforce.data.robot_formats.layout import LayoutError
from dforce.data.robot_formats.lerobot_info import Entry, LeRobotInfo
from dforce.data.robot_formats.parquet import read_table, row_group_ends
from dforce.data.video.clip import BadClip
from dforce.data.video.formats.film import FilmClip

OFF_BEAT = 0.25  # of a frame: an episode that begins further from a frame of its film belongs to another one
KEPT = 8  # row groups of picture files that stay in memory


@dataclass
class FilmCamera:
    """A camera whose episodes lie in films. entries: the episodes, in the order of their numbers here."""

    info: LeRobotInfo
    key: str
    entries: list[Entry]
    films: dict[Path, FilmClip] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path, _ in {entry.films[self.key] for entry in self.entries}:
            if not path.is_file():
                raise LayoutError(f"{path} is missing, the video of {self.key}: restore it, or take {self.key} out of "
                                  "features in meta/info.json")
        self.film(0)

    @property
    def size(self) -> tuple[int, int, int]:
        """(H, W, C), of the first film."""
        first = self.film(0)[0]
        return first.height, first.width, first.channels

    def film(self, episode: int) -> tuple[FilmClip, int]:
        """The film of an episode, and the number of its first frame there."""
        entry = self.entries[episode]
        path, begin = entry.films[self.key]
        if path not in self.films:
            try:
                self.films[path] = FilmClip.probe(path, path.name)
            except BadClip as error:
                raise LayoutError(f"{path}: {error}; restore it, or download it again") from error
        film, rate = self.films[path], self.info.fps
        if film.fps is not None and abs(film.fps - rate) > .01 * rate:
            raise LayoutError(f"{path} has {film.fps:g} frames a second, meta/info.json says {rate:g}")
        first = round(begin * rate)
        if abs(begin * rate - first) > OFF_BEAT:
            raise LayoutError(f"{path}: episode {entry.number} begins at {begin:g} s, which is between two frames")
        if first + entry.length > film.frames:
            raise LayoutError(f"{path} has {film.frames} frames, episode {entry.number} needs {first} to "
                              f"{first + entry.length - 1}; restore it, or download it again")
        return film, first

    def read(self, episode: int, index: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]: frames of an episode by number; behind the last one the last one."""
        film, first = self.film(episode)
        unique, inverse = np.unique(np.minimum(index, self.entries[episode].length - 1), return_inverse=True)
        try:
            frames = film.read(first + unique)[inverse]
        except BadClip as error:
            raise LayoutError(f"{film.path}: {error}; restore it, or download it again") from error
        if frames.shape[1:] != self.size:
            raise LayoutError(f"{film.path} has frames of shape {frames.shape[1:]}, those before {self.size}")
        return frames


@dataclass
class PictureCamera:
    """A camera whose frames are picture files (PNG) in a column of the data's parquet files.

    rows: file, number of the first row and number of rows of every episode. groups: row groups read last.
    """

    key: str
    rows: list[tuple[Path, int, int]]
    size: tuple[int, ...] = ()
    groups: OrderedDict[tuple[Path, int], list[Any]] = field(default_factory=OrderedDict)
    ends: dict[Path, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.size = self._picture(self.rows[0][0], self.rows[0][1]).shape

    def read(self, episode: int, index: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C]: frames of an episode by number; behind the last one the last one."""
        path, first, length = self.rows[episode]
        frames = [self._picture(path, first + int(t)) for t in np.minimum(index, length - 1)]
        strange = next((frame.shape for frame in frames if frame.shape != self.size), None)
        if strange:
            raise LayoutError(f"{path}: {self.key} has pictures of shape {strange}, the first one is {self.size}")
        return np.stack(frames)

    def _picture(self, path: Path, row: int) -> np.ndarray:
        if path not in self.ends:
            self.ends[path] = row_group_ends(path)
        group = int(np.searchsorted(self.ends[path], row, side="right"))
        if (path, group) not in self.groups:
            table = read_table(path, [self.key], group=group)
            if not table.column_names:
                raise LayoutError(f"{path} lacks the pictures of {self.key}: restore them, or take {self.key} out of "
                                  "features in meta/info.json")
            self.groups[path, group] = table.column(0).to_pylist()
            while len(self.groups) > KEPT:
                self.groups.popitem(last=False)
        stored = self.groups[path, group][row - (int(self.ends[path][group - 1]) if group else 0)]
        try:
            content = stored["bytes"] if isinstance(stored, dict) else stored
            if not isinstance(content, bytes):
                raise PictureError("no picture file is stored there")
            return read_picture(io.BytesIO(content))
        except (PictureError, KeyError) as error:
            raise LayoutError(f"{path}: row {row} of {self.key} cannot be read ({error}); restore it") from error


def lerobot_images(info: LeRobotInfo, entries: list[Entry], rows: list[tuple[Path, int, int]], extra: int
               ) -> dict[str, EpisodePictures]:
    """The pictures of all cameras by name. extra: observations that an episode has beyond its frames."""
    names = [each.camera for each in info.cameras]
    lengths = [entry.length + extra for entry in entries]
    out = {}
    for each in info.cameras:
        source: Any = FilmCamera(info, each.key, entries) if each.dtype == "video" else PictureCamera(each.key, rows)
        out[each.camera if names.count(each.camera) == 1 else each.key] = EpisodePictures(source, lengths)
    return out
