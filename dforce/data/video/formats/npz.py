"""Clips as npz files, in the layout of TECO's DMLab data."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from dforce.data.arrays import array_header, require_stored, unpacked_bytes
from dforce.data.video.clip import ACTIONS, BadClip, Clip, frame_shape, read_array

VIDEO, POSE = "video", "pose"  # members of the npz; pose is an addition of this package


@dataclass(kw_only=True)
class NpzClip(Clip):
    """An npz with `video` uint8 [T, H, W, 3], `actions` [T], and perhaps `pose` [T, P]; members: its arrays.

    offset: of the first frame's byte in the file where it is not compressed; only the frames asked for are then read.
    """

    suffixes = (".npz",)

    offset: int | None = None
    members: tuple[str, ...] = ()

    @classmethod
    def probe(cls, path: Path, name: str, *, fps: float | None = None) -> NpzClip:
        """Reads the headers only; fps is not used."""
        try:
            with zipfile.ZipFile(path) as archive:
                members = tuple(n.removesuffix(".npy") for n in archive.namelist())
                if VIDEO not in members:
                    raise BadClip(f"it has the arrays {', '.join(members) or '(none)'} and no {VIDEO!r}")
                info = archive.getinfo(f"{VIDEO}.npy")
                with archive.open(info) as member:
                    shape, dtype = _header(member)
                    head = member.tell()
                    require_stored(shape, dtype, unpacked_bytes(archive, info) - head)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
            raise error if isinstance(error, BadClip) else BadClip(f"it cannot be opened ({error})") from error
        height, width, channels = frame_shape(shape, dtype)
        plain = info.compress_type == zipfile.ZIP_STORED
        offset = _data_start(path, info) + head if plain else None
        return cls(name=name, path=str(path), frames=shape[0], height=height, width=width, channels=channels,
                   offset=offset, members=members)

    def read(self, index: np.ndarray) -> np.ndarray:
        shape = (self.frames, self.height, self.width, self.channels)
        try:
            if self.offset is not None:
                return np.memmap(self.path, np.uint8, "r", self.offset, shape)[index]
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{VIDEO}.npy") as member:
                _header(member)
                count = int(index[-1]) + 1  # what is compressed has to be read from the beginning
                data = member.read(count * int(np.prod(shape[1:])))
            return np.frombuffer(data, np.uint8).reshape(count, *shape[1:])[index]
        except (zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, zlib.error) as error:
            raise BadClip(f"it cannot be read ({error})") from error

    def actions(self) -> np.ndarray | None:
        if self.action_path is None and ACTIONS not in self.members:
            return None
        return read_array(self.action_path or self.path, ACTIONS)

    def poses(self) -> np.ndarray | None:
        return read_array(self.path, POSE) if POSE in self.members else None


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the npy array that a stream holds; the stream then stands at the array's first byte."""
    shape, fortran, dtype = array_header(member)
    if fortran and len(shape) > 1:
        raise BadClip("its video is stored in Fortran order; save it in C order")
    return shape, dtype


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, whose name and extra field have lengths of their own."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
