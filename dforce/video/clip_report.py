"""A generated data set of clips as a run: made, measured and shown."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dforce.data.generate.video import ClipGeneration
from dforce.data.video.dataset import VideoClips
from dforce.report.movie import write_frames
from dforce.report.plots import style
from dforce.report.rows import Row
from dforce.runs.folder import RunFolder, Ticker
from dforce.video.film import enlarge, grid
from dforce.video.metrics.measure import RowMaker

ROWS, COLUMNS, SIDE = 6, 12, 96  # of the contact sheet; least side of a picture on it, in pixels
FPS = 15
METRICS = {"brightness": "[-1, 1]", "contrast": "[-1, 1]", "speed": "rms a frame"}  # with their units


def generate_clips(generation: ClipGeneration, folder: RunFolder) -> None:
    """Makes the clips that are not in the folder yet, measures them and shows some."""
    begin, made = time.monotonic(), 0
    with Ticker(generation.total, "frames") as ticker:
        for frames in generation.make(folder.path):
            made += frames
            ticker.advance(frames, note=f"{made / (time.monotonic() - begin):.0f} frames/s")
    speed = made / (time.monotonic() - begin)
    if not folder.writes:
        return
    splits = {"train": VideoClips(folder.path, frames=1), "val": VideoClips(folder.path, frames=1, split="val")}
    lines = [line for split, clips in splits.items() for line in clip_statistics(clips, split)]
    folder.episodes(lines)
    frames = sum(line["frames"] for line in lines)
    folder.results(_rows(generation.source, lines, speed), data=str(folder.path),
                   summary=f"{len(lines)} clips of {generation.source}, {frames:,} frames; to learn from them: dforce "
                           f"train video data={folder.path}")
    _pictures(folder, splits["train"], generation.source)
    print(f"{len(lines)} clips, {frames} frames in {folder.path}"
          + (f", {made} of them made now at {speed:.0f} frames/s" if made else ", all of them were there"))
    print(f"to learn from them: dforce train video data={folder.path}")


def clip_statistics(clips: VideoClips, split: str) -> list[dict[str, Any]]:
    """One line a clip: brightness and speed of its pixels (in [-1, 1]), its actions, and how far the camera went."""
    lines = []
    for clip in clips.clips:
        video = clip.read(np.arange(clip.frames)).astype(np.float32) / 127.5 - 1
        line = {"split": split, "clip": clip.name, "frames": clip.frames, "brightness": float(video.mean()),
                "contrast": float(video.std()), "speed": float(np.sqrt((np.diff(video, axis=0) ** 2).mean()))}
        actions, poses = clip.actions(), clip.poses()
        if actions is not None:
            line |= {f"action_{i}": int(n) for i, n in enumerate(np.bincount(actions, minlength=3))}
        if poses is not None:
            line["path"] = float(np.hypot(*np.diff(poses[:, :2], axis=0).T).sum())
        lines.append(line)
    return lines


def _rows(source: str, lines: list[dict[str, Any]], speed: float) -> list[Row]:
    """Means over clips with their intervals, and the speed of the generator in frames a second, 0 where it idled."""
    rows = []
    for split in ("train", "val"):
        maker, clips = RowMaker(f"{source} clips", split, {}), [line for line in lines if line["split"] == split]
        rows += [maker.mean(metric, torch.tensor([line[metric] for line in clips]), unit=unit)
                 for metric, unit in METRICS.items()]
        rows.append(maker.row("frames", float(sum(line["frames"] for line in clips)), n=1))
    return rows + ([RowMaker(f"{source} clips", "all", {}).row("generated", speed, n=1, unit="frames/s")] if speed else
                   [])


def _pictures(folder: RunFolder, clips: VideoClips, source: str) -> None:
    """A contact sheet, a clip as a film, and where the camera of one shard went."""
    media = folder.media
    chosen = np.linspace(0, len(clips.clips) - 1, min(ROWS, len(clips.clips))).round().astype(int)
    films = [enlarge(clip.read(np.linspace(0, clip.frames - 1, COLUMNS).round().astype(int)), SIDE)
             for clip in (clips.clips[i] for i in chosen)]
    Image.fromarray(np.concatenate([np.concatenate(list(film), 1) for film in films])).save(media / "contact_sheet.png")
    first = clips.clips[chosen[0]]
    film = write_frames(media / "clip.mp4", [grid(frame[None, None]) for frame in enlarge(
        first.read(np.arange(first.frames)), SIDE)], fps=FPS)
    captions = {"contact_sheet.png": f"{len(chosen)} clips, a row each: {COLUMNS} frames from first to last.",
                film.name: f"One clip at {FPS} frames a second; the data set itself is not compressed."}
    if source == "doom":
        shard = [clip for clip in clips.clips if Path(clip.name).parent == Path(first.name).parent]
        _walk(media / "walk.png", [pose for clip in shard if (pose := clip.poses()) is not None])
        captions["walk.png"] = f"Where the camera went in {Path(first.name).parent.name}, in cells; a colour a clip."
    folder.captions(captions)


def _walk(file: Path, poses: list[np.ndarray]) -> None:
    """A picture of paths, poses [T, 3] of each."""
    figure = style.new_figure(5.0, 5.0)
    axes = figure.add_subplot(aspect="equal")
    style.plain_axes(axes, xlabel="x [cells]", ylabel="y [cells]", grid="both")
    for pose in poses:
        axes.plot(pose[:, 0], pose[:, 1], linewidth=1)
    axes.set_adjustable("datalim")
    figure.savefig(file)
