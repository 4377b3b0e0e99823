"""Films (mp4, webm, gif, ...), read through PyAV from any time on; and clips as folders of pictures, one a frame.

Frame i of a film is the one that a player shows at time t0 + i / rate, so that it belongs to action i: where frames
are not evenly spaced, a stored one counts as often as it is shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.pixels import PictureError, picture_sides, read_picture
from dforce.data.video.clip import ACTIONS, BadClip, Clip, natural

EVEN = 1.5  # evenly spaced: the longest frame lasts at most so many times the shortest (time stamps are rounded)


@dataclass(kw_only=True)
class FilmClip(Clip):
    """A film. shown: [T] time stamps (pts) of the stored frames that are shown as frames 0..T-1."""

    suffixes = (".mp4", ".gif", ".webm", ".mkv", ".avi", ".mov", ".m4v")

    shown: Sequence[int] = ()

    @classmethod
    def probe(cls, path: Path, name: str, *, fps: float | None = None) -> FilmClip:
        """Reads the packets and decodes one frame. fps: frames a second, None for the film's own."""
        av = import_av()
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise BadClip("it has no video stream")
                stream = container.streams.video[0]
                base = stream.time_base
                packets = [(p.pts, p.duration or 0) for p in container.demux(stream)
                           if p.pts is not None and p.size and not p.is_discard]  # a cut film keeps what it hides
                stamps, interval = _shown(sorted(packets), None if fps is None else 1 / (fps * float(base)))
                shown = _compact(stamps)
                if not shown:
                    raise BadClip("it has no frame")
                width, height = stream.codec_context.width, stream.codec_context.height
        except (av.FFmpegError, OSError, ValueError, AttributeError) as error:  # no codec, no context
            raise error if isinstance(error, BadClip) else BadClip(f"it cannot be opened ({_short(error)})") from error
        clip = cls(name=name, path=str(path), frames=len(shown), height=height, width=width, shown=shown,
                   fps=1 / (interval * float(base)) if interval else None)
        clip.height, clip.width = clip.read(np.zeros(1, int)).shape[1:3]
        return clip

    def distinct(self) -> int:
        return len(set(self.shown))

    def read(self, index: np.ndarray) -> np.ndarray:
        av, wanted = import_av(), [self.shown[i] for i in index]
        try:
            with av.open(self.path) as container:
                stream = container.streams.video[0]
                stream.thread_type = "NONE"  # short reads: starting threads costs more than they save
                decoded = _decode(container, stream, set(wanted), seek=wanted[0] > self.shown[0])
                if len(decoded) < len(set(wanted)) and wanted[0] > self.shown[0]:
                    container.seek(0, stream=stream)  # the film's index is wrong: it is read from its start
                    decoded |= _decode(container, stream, set(wanted) - set(decoded), seek=False)
        except (av.FFmpegError, OSError, ValueError, IndexError, AttributeError) as error:
            raise BadClip(f"frames {index[0]}..{index[-1]} cannot be decoded ({_short(error)})") from error
        missing = [int(i) for i, pts in zip(index, wanted, strict=True) if pts not in decoded]
        if missing:
            raise BadClip(f"{len(missing)} of the frames {index[0]}..{index[-1]} cannot be decoded, first {missing[0]}")
        return np.stack([decoded[pts] for pts in wanted])


def _decode(container: Any, stream: Any, wanted: set[int], *, seek: bool) -> dict[int, np.ndarray]:
    """Wanted frames by time stamp, decoded from the last key frame before the first of them."""
    if seek:
        container.seek(min(wanted), stream=stream, backward=True)
    decoded: dict[int, np.ndarray] = {}
    convert = import_av().video.reformatter.VideoReformatter()  # one for all frames: each frame would set up its own
    last = max(wanted, default=-1)
    for frame in container.decode(stream):
        if frame.pts in wanted:
            decoded[frame.pts] = _displayed(frame, stream, convert)
        if len(decoded) == len(wanted) or frame.pts is not None and frame.pts > last:
            break
    return decoded


def _displayed(frame: Any, stream: Any, convert: Any) -> np.ndarray:
    """A frame as a player shows it, uint8 [H, W, 3]: with square pixels, and turned as the film's matrix says."""
    aspect = stream.codec_context.sample_aspect_ratio or stream.sample_aspect_ratio
    width = round(frame.width * aspect) if aspect else frame.width
    pixels = convert.reformat(frame, width=width, height=frame.height, format="rgb24").to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    across_x, down_x, _, across_y, down_y = np.frombuffer(bytes(matrix), np.int32)[:5]  # of a step in x, and in y
    if abs(down_x) > abs(across_x):
        return pixels.swapaxes(0, 1)[:: -1 if down_x < 0 else 1, :: -1 if across_y < 0 else 1]
    return pixels[:: -1 if down_y < 0 else 1, :: -1 if across_x < 0 else 1]


def _shown(packets: Sequence[tuple[int, int]], interval: float | None) -> tuple[list[int], float | None]:
    """Time stamps of the frames shown at t0, t0 + interval, ..., in units of the time base, and that interval.

    packets: (pts, duration), ascending. interval: None for the film's own, the shortest that occurs.
    """
    stamps = [pts for pts, _ in packets]
    if len(stamps) < 2:
        return stamps, None
    gaps = np.diff(stamps)
    last = packets[-1][1] or int(np.median(gaps))
    durations = np.append(gaps, last)
    durations = durations[durations > 0]
    if interval is None:
        if durations.max() <= EVEN * durations.min():
            return stamps, (stamps[-1] - stamps[0]) / (len(stamps) - 1)
        interval = float(durations.min())
    count = max(1, round((stamps[-1] + last - stamps[0]) / interval))
    times = stamps[0] + interval * (np.arange(count) + 0.5)  # the middle of each frame, where rounding does not matter
    return [stamps[max(0, bisect_right(stamps, t) - 1)] for t in times], interval


def _compact(stamps: list[int]) -> Sequence[int]:
    """Evenly spaced stamps as a range, so that an index of many films stays small."""
    step = stamps[1] - stamps[0] if len(stamps) > 1 else 0
    even = step > 0 and all(b - a == step for a, b in zip(stamps, stamps[1:], strict=False))
    return range(stamps[0], stamps[-1] + 1, step) if even else stamps


def _short(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def import_av() -> Any:
    """PyAV; ModuleNotFoundError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ModuleNotFoundError("films need PyAV: pip install 'dforce[video]'", name="av") from error
    av.logging.set_level(av.logging.PANIC)  # this module reports a bad file once, by name
    return av


@dataclass(kw_only=True)
class FrameFolder(Clip):
    """A folder of pictures, one a frame, in the natural order of their names (2 before 10). files: those names."""

    parts = (".png", ".jpg", ".jpeg", ".bmp", ".webp")

    files: Sequence[str] = ()

    @classmethod
    def probe(cls, path: Path, name: str, *, fps: float | None = None) -> FrameFolder:
        """Reads the first picture and the headers of all; fps is not used. BadClip where there is none, one cannot be
        read, or they are of several sizes."""
        files = sorted((f.name for f in path.iterdir() if f.suffix.lower() in cls.parts), key=natural)
        if not files:
            raise BadClip("it has no frame")
        height, width, channels = _picture(path / files[0]).shape
        for file in files:
            try:
                sides = picture_sides(path / file)
            except PictureError as error:
                raise BadClip(f"{file} cannot be read ({error})") from error
            if sides != sorted((height, width)):
                raise BadClip(f"{file} is of another size than the first frame, {height}x{width}")
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
