"""Films of rollouts, written frame by frame, and strips of pictures that show a long time at a glance."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4            # pixels between pictures
SIDE = 128         # pixels that a picture of a film is enlarged to, or more
PAPER = 255
FILMED = 8         # rollouts in a film
FONT = ImageFont.load_default(14)
LOOKS = (0, 1, 5, 10, 20, 50, 100, 200, 300, 500, 700, 900, 999, 2000, 5000, 10_000)  # frames of a strip of a rollout


def enlarge(pictures: np.ndarray, side: int = SIDE) -> np.ndarray:
    """uint8 [..., H, W, C] -> [..., k H, k W, 3] with the smallest whole k that makes H at least `side`."""
    k = max(1, -(-side // pictures.shape[-3]))
    if pictures.shape[-1] == 1:
        pictures = np.repeat(pictures, 3, -1)
    return pictures.repeat(k, -3).repeat(k, -2)


def grid(pictures: np.ndarray) -> np.ndarray:
    """uint8 [rows, columns, H, W, 3] -> one picture, white between; even sides, as H.264 wants them."""
    rows, columns, height, width, _ = pictures.shape
    tall, wide = rows * (height + GAP) - GAP, columns * (width + GAP) - GAP
    sheet = np.full((tall + tall % 2, wide + wide % 2, 3), PAPER, np.uint8)
    for r in range(rows):
        for c in range(columns):
            y, x = r * (height + GAP), c * (width + GAP)
            sheet[y:y + height, x:x + width] = pictures[r, c]
    return sheet


def film_frame(pixels: np.ndarray, real: np.ndarray | None, number: int) -> np.ndarray:
    """Frame `number` of rollouts, uint8 [B, H, W, C], below real video, uint8 [T, B, H, W, C], which begins anew."""
    rows = [] if real is None else [enlarge(real[number % len(real)])]
    return grid(np.stack([*rows, enlarge(pixels[:FILMED])]))


def need_film_writer(instead: str) -> None:
    """ModuleNotFoundError where PyAV is not installed. instead: the setting that goes without a film."""
    if importlib.util.find_spec("av") is None:
        raise ModuleNotFoundError(f"films are written by PyAV: pip install 'dforce[video]'; or go without, {instead}",
                                  name="av")


class Film:
    """An mp4 that grows frame by frame; what was written plays even where the writing is interrupted. Needs av.

    crf: x264's quality, lower is better. Colour is at half resolution (yuv420p), of pictures enlarged by whole numbers.
    """

    def __init__(self, file: str | Path, *, fps: float, crf: int = 12):
        self.file, self.fps, self.crf = Path(file), fps, crf
        self._out: Any = None

    def __enter__(self) -> Film:
        return self

    def write(self, picture: np.ndarray) -> None:
        """One frame, uint8 [height, width, 3], even sides."""
        if self._out is None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}  # playable without an end
            self._out = iio.imopen(self.file, "w", plugin="pyav", options=flags)  # type: ignore[call-overload]
            self._out.init_video_stream("libx264", fps=self.fps, pixel_format="yuv420p", max_keyframe_interval=30)
            self._out._video_stream.codec_context.options = {"crf": str(self.crf), "preset": "veryfast", "threads": "1"}
        self._out.write_frame(picture)

    def __exit__(self, *error: object) -> None:
        if self._out is not None:
            self._out.close()


def strip(frames: np.ndarray, at: Sequence[int], file: str | Path, *, labels: Iterable[str] = (), side: int = 96,
          ) -> Path:
    """A picture: a row, with its label, for each clip of frames uint8 [T, B, H, W, C]; a column for each frame `at`."""
    kept = [t for t in at if t < len(frames)]
    sheet = grid(np.stack([enlarge(np.asarray(frames[t]), side) for t in kept], 1))
    names = list(labels)
    left, top = (12 + round(max(map(FONT.getlength, names))) if names else 0), 20
    page = Image.new("RGB", (sheet.shape[1] + left, sheet.shape[0] + top), (PAPER,) * 3)
    page.paste(Image.fromarray(sheet), (left, top))
    pen, step = ImageDraw.Draw(page), (sheet.shape[1] + GAP) // len(kept)
    for i, t in enumerate(kept):
        pen.text((left + i * step + 2, 2), str(t), fill=(31, 39, 51), font=FONT)
    for i, name in enumerate(names):
        pen.text((2, top + i * (sheet.shape[0] + GAP) // frames.shape[1] + 4), name, fill=(31, 39, 51), font=FONT)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    page.save(file)
    return file
