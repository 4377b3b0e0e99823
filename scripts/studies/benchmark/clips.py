"""Windows of video clips: `VideoClips` against decoding each clip from its start.

python scripts/studies/benchmark/clips.py [--data FOLDER] [--clips 12] [--size 64] [--window 36] [--rounds 9] [--out
FOLDER]

The clips (of 300 frames; walks through mazes, or the npz clips of --data) are written as npz, compressed npz, mp4 with
x264's usual key frames and mp4 with one every 12 frames. Every way reads the same random windows into the same tensors,
which is checked before a clock runs:
  from the start   the clip is opened and decoded up to the window's end (npz: loaded), then cut
  whole clip       all of it is decoded, then cut: what the official loader does
  VideoClips       timed reads: from the key frame before the window; of an npz, the window's bytes alone
  VideoClips, cache=True   frames that were decoded once
Times are of the process's own work (CPU seconds), taken in turn, so that what else the machine does leaves them alone.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import imageio.v3 as iio
import numpy as np
import torch
from torch import Tensor

from dforce.benchmarks.speed.harness import Way, agree, median_row
from dforce.data import VideoClips
from dforce.data.generate.video import doom
from dforce.report.rows import Row
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder, progress

TASK = "clip loading"
FORMATS = {"npz": {}, "npz, compressed": {}, "mp4": {}, "mp4, key frame every 12": {"g": "12", "bf": "0"}}


def films(args: argparse.Namespace, place: Path) -> list[np.ndarray]:
    """Videos [T, H, W, C] uint8: of --data, or generated."""
    data = args.data
    if data is None:
        mazes = max(2, -(-args.clips // 4))
        making = doom(place / "made", mazes=mazes, test_mazes=0, clips=4, frames=300, size=args.size)
        for _ in progress(making, "clips"):
            pass
        data = place / "made"
    clips = VideoClips(data, frames=args.window, held_out=0, size=args.size)
    return [clips._read(clip, np.arange(clip.frames)) for clip in clips.clips[:args.clips]]


def written(videos: list[np.ndarray], folder: Path, kind: str) -> Path:
    """The videos as files of one kind."""
    folder.mkdir(parents=True)
    for i, video in enumerate(videos):
        if kind.startswith("npz"):
            (np.savez_compressed if "compressed" in kind else np.savez)(folder / f"{i:03}.npz", video=video)
            continue
        with iio.imopen(folder / f"{i:03}.mp4", "w", plugin="pyav") as out:
            out.init_video_stream("libx264", fps=15, pixel_format="yuv420p")
            stream: Any = out._video_stream
            stream.codec_context.options = {"crf": "18", **FORMATS[kind]}
            for frame in video:
                out.write_frame(frame)
    return folder


def decoded(file: Path, stop: int | None) -> np.ndarray:
    """A film or npz from its start, up to frame `stop` where that can be chosen."""
    if file.suffix == ".npz":
        with np.load(file) as loaded:
            return loaded["video"]
    frames, convert = [], av.video.reformatter.VideoReformatter()
    with av.open(str(file)) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            frames.append(convert.reformat(frame, format="rgb24").to_ndarray())
            if len(frames) == stop:
                break
    return np.stack(frames)


def plain(clips: VideoClips, windows: np.ndarray, *, whole: bool) -> Tensor:
    """What one writes first. -> x [B, T, C, H, W] in [-1, 1]."""
    rows = []
    for number in windows:
        place = int(np.searchsorted(clips._ends, number, side="right"))
        start = int(number - clips._begins[place])
        video = decoded(Path(clips.clips[place].path), None if whole else start + clips.frames)
        rows.append(video[start:start + clips.frames])
    return torch.from_numpy(np.stack(rows)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def ways(folder: Path, kind: str, args: argparse.Namespace) -> tuple[list[Way], int]:
    """Four ways to read the same windows, and how many frames that are."""
    clips = VideoClips(folder, frames=args.window, held_out=0, batch=args.batch)
    cached = VideoClips(folder, frames=args.window, held_out=0, batch=args.batch, cache=folder.parent / "cache")
    windows = np.random.default_rng(0).integers(len(clips), size=args.batch)
    first = [Way("from the start", lambda: plain(clips, windows, whole=False))]
    if kind.startswith("mp4"):
        first.append(Way("whole clip", lambda: plain(clips, windows, whole=True)))
    return [*first, Way("VideoClips", lambda: clips.gather(windows).x),
            Way("VideoClips, cache=True", lambda: cached.gather(windows).x)], args.batch * args.window


def timed(run: Callable[[], Any]) -> float:
    gc.collect()
    begin = time.process_time()
    run()
    return time.process_time() - begin


def measured(kind: str, chosen: list[Way], frames: int, rounds: int) -> tuple[list[Row], list[dict]]:
    """Rows of frames a second, and of how many times those of the first way; and one line a timed run."""
    agree(chosen)
    taken: dict[str, list[float]] = {way.name: [] for way in chosen}
    for index in range(rounds):
        for way in chosen if index % 2 == 0 else chosen[::-1]:
            taken[way.name].append(timed(way.run))
    first, *others = taken
    rows = [median_row(TASK, name, "frames", frames / np.array(seconds), variant={"format": kind}, unit="per CPU s",
                       higher=True) for name, seconds in taken.items()]
    rows += [median_row(TASK, name, "speed-up", np.array(taken[first]) / np.array(taken[name]),
                        variant={"format": kind}, unit="times from the start", higher=True) for name in others]
    return rows, [{"task": TASK, "method": name, "format": kind, "round": i, "cpu_seconds": s, "frames": frames}
                  for name, seconds in taken.items() for i, s in enumerate(seconds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a folder of clips; none: mazes are made, which needs dforce[doom]")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--size", type=int, default=64, help="pixels a side")
    parser.add_argument("--window", type=int, default=36, help="frames")
    parser.add_argument("--batch", type=int, default=16, help="windows of a timed run")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out")
    args = parser.parse_args()
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(prefix="clips-"))
    rows: list[Row] = []
    try:
        with RunFolder("benchmark/clips", vars(args), out=args.out) as folder, warnings.catch_warnings():
            videos = films(args, place)
            for number, kind in enumerate(FORMATS):
                chosen, frames = ways(written(videos, place / str(number) / "set", kind), kind, args)
                more, runs = measured(kind, chosen, frames, args.rounds)
                rows += more
                folder.episodes(runs)
                folder.results(rows, clips=len(videos), frames=sum(map(len, videos)))
            print(markdown_table(rows))
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
