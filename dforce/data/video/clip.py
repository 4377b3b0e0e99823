"""A clip of video as it is stored: how many frames, how large, and any of them read without the others."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from dforce.data.arrays import require_honest_sizes

ACTIONS = "actions"  # an npz member, and the stem of a file of actions beside frames


class BadClip(ValueError):
    """A clip that cannot be used, with the reason; what reads many clips leaves it out and goes on."""


@dataclass(kw_only=True)
class Clip:
    """One clip. A format is a subclass, listed in `formats`; its fields are JSON-able, so that they can be indexed.

    suffixes: of the files that are clips of the format. parts: of files of which a whole folder is one clip.
    name: relative to where the clip was looked for. frames: T. height, width: pixels. channels: 1 or 3.
    fps: frames a second, None where the format does not say. action_path: a file of actions beside the frames.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()

    name: str
    path: str
    frames: int
    height: int
    width: int
    channels: int = 3
    fps: float | None = None
    action_path: str | None = None

    @classmethod
    def probe(cls, path: Path, name: str, *, fps: float | None = None) -> Clip:
        """The clip in a file or folder, of which little is read; fps: to read films at. BadClip where there is none."""
        raise NotImplementedError

    def read(self, index: np.ndarray) -> np.ndarray:
        """Frames by number. index: [n] in 0..frames-1, ascending -> uint8 [n, H, W, C]. BadClip where it cannot."""
        raise NotImplementedError

    def actions(self) -> np.ndarray | None:
        """Actions as stored, [R] integers or [R, A] floats; None where there are none."""
        return None if self.action_path is None else read_array(self.action_path, ACTIONS)

    def distinct(self) -> int:
        """How many of its frames are stored; the others are shown again, to keep the rate."""
        return self.frames

    def poses(self) -> np.ndarray | None:
        """Position and direction of the camera, [T, P]; None where they are not stored."""
        return None


class ClipSet(NamedTuple):
    """clips: that can be used. split: "train", "val" or None for each. skipped: name -> reason. notes: for the user.

    names: of all files looked at, over which splits are drawn, so that a bad file moves no other one. offset: of
    actions, see `actions.led_to`. title: what a layout calls the data set.
    """

    clips: list[Clip]
    split: list[str | None]
    skipped: dict[str, str]
    names: list[str]
    notes: list[str]
    offset: int = 0
    title: str = "clips"


@dataclass(kw_only=True)
class ArrayClip(Clip):
    """Frames in memory, or in an array on disk that is mapped: video uint8 [T, H, W, C]. taken: the actions."""

    video: Any = None
    taken: np.ndarray | None = None
    pose: np.ndarray | None = None

    @staticmethod
    def of(video: np.ndarray, actions: np.ndarray | None = None, pose: np.ndarray | None = None, *,
           name: str = "array") -> ArrayClip:
        """A clip of video [T, H, W] or [T, H, W, C]; BadClip for what is no uint8 video of at least one frame."""
        height, width, channels = frame_shape(video.shape, video.dtype)
        return ArrayClip(name=name, path="", frames=len(video), height=height, width=width, channels=channels,
                         video=video.reshape(len(video), height, width, channels), taken=actions, pose=pose)

    def read(self, index: np.ndarray) -> np.ndarray:
        return np.asarray(self.video[index])

    def actions(self) -> np.ndarray | None:
        return self.taken

    def poses(self) -> np.ndarray | None:
        return self.pose


def frame_shape(shape: Sequence[int], dtype: np.dtype) -> tuple[int, int, int]:
    """Height, width and channels of a video array; BadClip for what is none."""
    if dtype != np.uint8 or not (len(shape) == 3 or len(shape) == 4 and shape[3] in (1, 3)):
        raise BadClip(f"its video is {dtype} {tuple(shape)}, wanted is uint8 (T, H, W, 3) or (T, H, W, 1)")
    if 0 in shape:
        raise BadClip("it has no frame" if shape[0] == 0 else f"its frames are empty: {tuple(shape)}")
    return shape[1], shape[2], shape[3] if len(shape) == 4 else 1


def read_array(path: str | Path, member: str) -> np.ndarray:
    """An array of an npz, or the only one of an npy. BadClip names the file where it is not there."""
    try:
        require_honest_sizes(path, (member,))
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return loaded[member]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error,
            NotImplementedError, RuntimeError) as error:
        raise BadClip(f"{member!r} of {Path(path).name} cannot be read ({error})") from error


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [n, H, W, C] -> [n, *size, C]: the middle, cut out in the new aspect ratio, resized with antialiasing."""
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


def natural(name: str) -> list[Any]:
    """A sort key for names in which 2 comes before 10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split("([0-9]+)", name))]
