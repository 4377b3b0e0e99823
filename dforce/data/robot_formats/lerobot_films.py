"""Films of LeRobot data sets as they are written: the episodes of one camera, one after another in mp4 files."""

from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dforce.data.video.formats.film import import_av

PLACE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
CHUNK = 1000  # files of a folder
Pictures = Literal["lossless", "lossy"]
CODECS = {  # encoder, pixels, options; both are H.264
    "lossless": ("libx264rgb", "rgb24", {"qp": "0"}),
    "lossy": ("libx264", "yuv420p", {"crf": "18"})}
GAP = 2  # frames from one key frame to the next, as lerobot has it, so that any frame is read quickly


class FilmWriter:
    """Mp4 files of one camera; another one begins at the episode after `mb` megabytes."""

    def __init__(self, root: Path, key: str, fps: float, mb: float, pictures: Pictures) -> None:
        self.root, self.key, self.rate, self.limit = root, key, Fraction(fps).limit_denominator(10**4), mb * 2**20
        self.codec, self.pixels, self.options = CODECS[pictures]
        self.file, self.frames, self.bytes = -1, 0, 0
        self.container: Any = None
        self.stream: Any = None

    def write(self, frames: np.ndarray) -> dict[str, Any]:
        """Appends an episode, uint8 [n, H, W, 3]; returns where it lies, as meta/episodes lists it."""
        av = import_av()
        if self.container is None or self.bytes >= self.limit:
            self._begin(av, *frames.shape[1:3])
        begin = self.frames
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, self.frames = self.frames, self.frames + 1
            packets = self.stream.encode(frame)
            self.bytes += sum(packet.size for packet in packets)
            self.container.mux(packets)
        chunk, file = divmod(self.file, CHUNK)
        return {f"videos/{self.key}/chunk_index": chunk, f"videos/{self.key}/file_index": file,
                f"videos/{self.key}/from_timestamp": float(begin / self.rate),
                f"videos/{self.key}/to_timestamp": float(self.frames / self.rate)}

    def _begin(self, av: Any, height: int, width: int) -> None:
        self.close()
        self.file += 1
        place = PLACE.format(chunk_index=self.file // CHUNK, file_index=self.file % CHUNK)
        path = self.root / "videos" / self.key / f"{place}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.container, self.frames, self.bytes = av.open(str(path), "w"), 0, 0
        self.stream = self.container.add_stream(self.codec, rate=self.rate, options=self.options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, self.pixels
        self.stream.gop_size, self.stream.max_b_frames = GAP, 0
        if self.pixels == "yuv420p" and (height % 2 or width % 2):
            self.stream.pix_fmt = "yuv444p"  # halved colours need even sides

    def close(self) -> None:
        """Ends the last file."""
        if self.container is not None:
            self.container.mux(self.stream.encode())
            self.container.close()
        self.container = None

    def facts(self, height: int, width: int) -> dict[str, Any]:
        """What meta/info.json says about the camera."""
        return {"dtype": "video", "shape": [height, width, 3], "names": ["height", "width", "channels"],
                "info": {"video.height": height, "video.width": width, "video.channels": 3, "video.codec": "h264",
                         "video.pix_fmt": "gbrp" if self.pixels == "rgb24" else self.pixels,
                         "video.fps": float(self.rate), "video.is_depth_map": False, "has_audio": False}}
