"""Decoded clips in one memory-mapped file, from which frames are read without decoding."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.seal import cache_root, file_digest, read_sealed, stamp, write_sealed
from dforce.data.video.clip import BadClip, Clip, resized

CHUNK = 256  # frames decoded at a time, which bounds the memory
FORMAT = 2


@dataclass(kw_only=True)
class CachedClip(Clip):
    """A clip in a file of many decoded clips, uint8, from byte `offset` on. origin: the clip that was decoded."""

    offset: int = 0
    origin: Clip | None = None

    def read(self, index: np.ndarray) -> np.ndarray:
        shape = (self.frames, self.height, self.width, self.channels)
        try:
            return np.memmap(self.path, np.uint8, "r", self.offset, shape)[index]
        except (OSError, ValueError) as error:
            raise BadClip(f"the decoded frames in {self.path} are gone ({error})") from error

    def actions(self) -> np.ndarray | None:
        return self.origin.actions() if self.origin else None

    def poses(self) -> np.ndarray | None:
        return self.origin.poses() if self.origin else None


def cached(clips: Sequence[Clip], size: tuple[int, int],
           folder: str | os.PathLike | None = None, *,
           advance: Callable[[float], object] = lambda share: None) -> tuple[list[Clip], dict[str, str]]:
    """The clips, decoded and resized, kept in `folder` (None: the cache's); and name -> why one stays as it was.

    advance: told the shares of the decoding as they are done.
    """
    top = Path(folder).expanduser() if folder is not None else cache_root() / "frames"
    place = top / _digest(clips, size)
    index = _intact(place)
    if index is None:
        _fill(place, clips, size, advance)
        index = _intact(place)
    if index is None:
        raise ValueError(f"the decoded clips in {place} are not what was written there: is the disk failing?")
    bad: dict[str, str] = index["bad"]
    out: list[Clip] = []
    for clip in clips:
        begin = index["offset"].get(clip.name)
        out.append(clip if begin is None else CachedClip(
            name=clip.name, path=str(place / "frames.u8"), frames=clip.frames, height=size[0], width=size[1],
            channels=clip.channels, offset=begin, origin=clip))
    return out, bad


def _intact(place: Path) -> dict[str, Any] | None:
    """The index of decoded clips; None where there are none, or they are not those that were written."""
    index = read_sealed(place / "index.json")
    try:
        return index if index and file_digest(place / "frames.u8") == index["sha256"] else None
    except (OSError, KeyError):
        return None


def _fill(place: Path, clips: Sequence[Clip], size: tuple[int, int], advance: Callable[[float], object]) -> None:
    """Decodes into a temporary folder, which is then renamed to `place`; the first of several processes wins."""
    place.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(clip.frames * size[0] * size[1] * clip.channels for clip in clips)
    total = sum(clip.frames for clip in clips)
    free = shutil.disk_usage(place.parent).free
    if needed > 0.95 * free:
        raise ValueError(f"the decoded clips take {needed / 1e9:.1f} GB, {place.parent} has {free / 1e9:.1f} GB free: "
                         "use a smaller size=, fewer clips, cache=<a folder elsewhere>, or no cache")
    stage = Path(tempfile.mkdtemp(prefix=".decoding-", dir=place.parent))
    try:
        offset, bad, position = {}, {}, 0
        with open(stage / "frames.u8", "wb") as file:
            for clip in clips:
                try:
                    for start in range(0, clip.frames, CHUNK):
                        index = np.arange(start, min(start + CHUNK, clip.frames))
                        file.write(np.ascontiguousarray(resized(clip.read(index), size)).data)
                        advance(len(index) / total)
                except BadClip as error:
                    bad[clip.name] = str(error)
                    file.seek(position)
                    file.truncate()
                    continue
                offset[clip.name], position = position, file.tell()
            file.flush()
            os.fsync(file.fileno())
        write_sealed(stage / "index.json", {"format": FORMAT, "offset": offset, "bad": bad,
                                            "sha256": file_digest(stage / "frames.u8")})
        _replace(place, stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _replace(place: Path, stage: Path) -> None:
    """Puts decoded clips in their place, instead of damaged ones if there are some."""
    if _intact(place) is not None:  # another process was first, with the same frames
        return
    if place.exists():
        damaged = Path(tempfile.mkdtemp(prefix=".damaged-", dir=place.parent))
        os.rename(place, damaged / "was")
        shutil.rmtree(damaged, ignore_errors=True)
    try:
        os.rename(stage, place)
    except OSError:
        if _intact(place) is None:
            raise


def _digest(clips: Sequence[Clip], size: tuple[int, int]) -> str:
    """A digest of everything that the decoded frames depend on. ValueError for clips that are in memory."""
    facts: list[object] = [FORMAT, size]
    stamps: dict[str, object] = {}
    for clip in clips:
        if not clip.path or not os.path.exists(clip.path):
            raise ValueError(f"{clip.name} lies in memory and needs no cache: leave cache=False")
        if clip.path not in stamps:
            stamps[clip.path] = stamp(clip.path)
        facts.append([type(clip).__name__, {key: str(value) for key, value in asdict(clip).items()}])
    return hashlib.sha256(json.dumps([facts, stamps]).encode()).hexdigest()[:20]
