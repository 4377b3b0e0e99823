"""A clip of video as it lies on disk: how many frames, how large, and any of them read without the others."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

VIDEO, ACTIONS, POSE = "video", "actions", "pose"  # members of an npz of TECO's layout; pose is ours
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


class BadClip(ValueError):
    """A clip that cannot be used, with the reason; what reads many clips leaves it out and goes on."""


@dataclass(kw_only=True)
class Clip:
    """name: for messages, relative to where the clip was looked for. frames: T. height, width in pixels. channels: 1
    or 3. action_path: a file of actions beside the frames. JSON-able, so that an index of clips can be kept."""

    name: str
    path: str
    frames: int
    height: int
    width: int
    channels: int = 3
    action_path: str | None = None

    def read(self, index: np.ndarray) -> np.ndarray:
        """Frames by number. index: [n] in 0..frames-1, ascending -> uint8 [n, H, W, C]. BadClip where it cannot."""
        raise NotImplementedError

    def actions(self) -> np.ndarray | None:
        """Actions as stored, [R] integers or [R, A] floats; None where there are none."""
        return None if self.action_path is None else read_array(self.action_path, ACTIONS)

    def poses(self) -> np.ndarray | None:
        """Where the camera was, [T, P]; None where it is not known."""
        return None


@dataclass(kw_only=True)
class NpzClip(Clip):
    """An npz with `video` uint8 [T, H, W, 3], `actions` [T], and perhaps `pose` [T, P]: TECO's DMLab files.

    offset: where the frames begin in the file if they are not compressed: then only those asked for are read.
    """

    offset: int | None = None
    members: tuple[str, ...] = ()

    @staticmethod
    def probe(path: Path, name: str) -> NpzClip:
        """Reads the headers only. BadClip where the file is no such clip."""
        try:
            with zipfile.ZipFile(path) as archive:
                members = tuple(n.removesuffix(".npy") for n in archive.namelist())
                if VIDEO not in members:
                    raise BadClip(f"it has the arrays {', '.join(members) or '(none)'} and no {VIDEO!r}")
                info = archive.getinfo(f"{VIDEO}.npy")
                with archive.open(info) as member:
                    shape, dtype = _header(member)
                    head = member.tell()
        except (zipfile.BadZipFile, OSError, ValueError, EOFError) as error:
            raise error if isinstance(error, BadClip) else BadClip(f"it cannot be opened ({error})") from error
        height, width, channels = _frame_shape(shape, dtype)
        plain = info.compress_type == zipfile.ZIP_STORED
        offset = _data_start(path, info) + head if plain else None
        return NpzClip(name=name, path=str(path), frames=shape[0], height=height, width=width, channels=channels,
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


@dataclass(kw_only=True)
class FrameFolder(Clip):
    """A folder of pictures, one a frame, in the natural order of their names (2 before 10)."""

    files: Sequence[str] = ()

    @staticmethod
    def probe(path: Path, name: str) -> FrameFolder:
        """Reads the first picture. BadClip where there is none or it cannot be read."""
        files = sorted((f.name for f in path.iterdir() if f.suffix.lower() in IMAGES), key=natural)
        if not files:
            raise BadClip("it has no frame")
        height, width, channels = _picture(path / files[0]).shape
        beside = [path / f"{ACTIONS}.npz", path / f"{ACTIONS}.npy"]
        return FrameFolder(name=name, path=str(path), frames=len(files), height=height, width=width, channels=channels,
                           files=files, action_path=next((str(p) for p in beside if p.is_file()), None))

    def read(self, index: np.ndarray) -> np.ndarray:
        pictures = [_picture(Path(self.path) / self.files[i]) for i in index]
        for i, picture in zip(index, pictures, strict=True):
            if picture.shape != (self.height, self.width, self.channels):
                raise BadClip(f"{self.files[i]} has the shape {picture.shape}, the first frame has "
                              f"{(self.height, self.width, self.channels)}")
        return np.stack(pictures)


@dataclass(kw_only=True)
class ArrayClip(Clip):
    """Frames in memory, or in an array on disk that is mapped: video uint8 [T, H, W, C]."""

    video: Any = None
    taken: np.ndarray | None = None
    pose: np.ndarray | None = None

    @staticmethod
    def of(video: np.ndarray, actions: np.ndarray | None = None, pose: np.ndarray | None = None, *,
           name: str = "array") -> ArrayClip:
        """BadClip for what is no uint8 video of at least one frame."""
        height, width, channels = _frame_shape(video.shape, video.dtype)
        return ArrayClip(name=name, path="", frames=len(video), height=height, width=width, channels=channels,
                         video=video.reshape(len(video), height, width, channels), taken=actions, pose=pose)

    def read(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self.video[index])

    def actions(self) -> np.ndarray | None:
        return self.taken

    def poses(self) -> np.ndarray | None:
        return self.pose


def read_array(path: str | Path, member: str) -> np.ndarray:
    """An array of an npz, or the one of an npy. BadClip naming the file where it is not there."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return loaded[member]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadClip(f"{member!r} of {Path(path).name} cannot be read ({error})") from error


def fit(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames of another size: the middle cut out in the new aspect ratio, then resized with antialiasing.

    frames: uint8 [n, H, W, C] -> uint8 [n, *size, C].
    """
    height, width = frames.shape[1:3]
    if (height, width) == size:
        return frames
    scale = min(height / size[0], width / size[1])
    high, wide = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - high) // 2, (width - wide) // 2
    cut = np.ascontiguousarray(frames[:, top : top + high, left : left + wide])
    x = torch.from_numpy(cut).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
    return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which 2 comes before 10."""
    parts, digits = [], ""
    for letter in [*name, ""]:
        if letter.isdigit() and letter.isascii():
            digits += letter
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        parts.append((1, 0, letter))
    return parts


def _header(member: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of the npy array that a stream holds; the stream then stands at its first byte."""
    version = np.lib.format.read_magic(member)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(member)
    if fortran and len(shape) > 1:
        raise BadClip("its video is stored in Fortran order; save it in C order")
    return shape, dtype


def _frame_shape(shape: Sequence[int], dtype: np.dtype) -> tuple[int, int, int]:
    """Height, width, channels of a video array; BadClip for what is none."""
    if dtype != np.uint8 or not (len(shape) == 3 or len(shape) == 4 and shape[3] in (1, 3)):
        raise BadClip(f"its video is {dtype} {tuple(shape)}, wanted is uint8 (T, H, W, 3) or (T, H, W, 1)")
    if 0 in shape:
        raise BadClip("it has no frame" if shape[0] == 0 else f"its frames are empty: {tuple(shape)}")
    return shape[1], shape[2], shape[3] if len(shape) == 4 else 1


def _data_start(path: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, whose name and extra field have lengths of their own."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        local = file.read(30)
    return info.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _picture(path: Path) -> np.ndarray:
    """A picture as uint8 [H, W, 1 or 3]; transparency is dropped, palettes are resolved."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            array = np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise BadClip(f"{path.name} cannot be read ({error})") from error
    return array[..., None] if array.ndim == 2 else array
