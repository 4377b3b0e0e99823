"""Clips as folders of pictures, one a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dforce.data.pictures import PictureError, read_picture
from dforce.data.video.clip import ACTIONS, BadClip, Clip, natural


@dataclass(kw_only=True)
class FrameFolder(Clip):
    """A folder of pictures, one a frame, in the natural order of their names (2 before 10). files: those names."""

    parts = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

    files: Sequence[str] = ()

    @classmethod
    def probe(cls, path: Path, name: str, *, fps: float | None = None) -> FrameFolder:
        """Reads the first picture; fps is not used. BadClip where there is none or it cannot be read."""
        files = sorted((f.name for f in path.iterdir() if f.suffix.lower() in cls.parts), key=natural)
        if not files:
            raise BadClip("it has no frame")
        height, width, channels = _picture(path / files[0]).shape
        beside = [path / f"{ACTIONS}.npz", path / f"{ACTIONS}.npy"]
        return cls(name=name, path=str(path), frames=len(files), height=height, width=width, channels=channels,
                   files=files, action_path=next((str(p) for p in beside if p.is_file()), None))

    def read(self, index: np.ndarray) -> np.ndarray:
        pictures = [_picture(Path(self.path) / self.files[i]) for i in index]
        for i, picture in zip(index, pictures, strict=True):
            if picture.shape != (self.height, self.width, self.channels):
                raise BadClip(f"{self.files[i]} has the shape {picture.shape}, the first frame has "
                              f"{(self.height, self.width, self.channels)}")
        return np.stack(pictures)


def _picture(path: Path) -> np.ndarray:
    """A picture as uint8 [H, W, 1 or 3], as `read_picture` reads it. BadClip names the file that cannot be read."""
    try:
        return read_picture(path)
    except PictureError as error:
        raise BadClip(f"{path.name} cannot be read ({error})") from error
