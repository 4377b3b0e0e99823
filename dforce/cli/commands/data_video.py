"""`dforce data video`: clips of generated mazes or bouncing balls, and a page that shows them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dforce.config import nearest
from dforce.data import VideoClips
from dforce.data.generate.video import bouncing_balls, doom
from dforce.report.movie import write_frames
from dforce.runs.folder import RunFolder, Ticker, write_atomic

SOURCES = ("doom", "balls")
FEW = {"mazes": 2, "test_mazes": 1, "clips": 2, "test_clips": 2, "frames": 24}  # under fast_dev_run
ROWS, COLUMNS, SIDE = 6, 12, 96  # of the contact sheet; side of a picture on it, in pixels
FPS = 15


def run(cfg: Any, folder: RunFolder) -> None:
    """Makes the clips that are not there yet, measures them and shows some."""
    if cfg.source not in SOURCES:
        raise ValueError(f"no source {cfg.source!r}{nearest(cfg.source, SOURCES)}; sources: {', '.join(SOURCES)}")
    settings = {**cfg, **(FEW if cfg.fast_dev_run else {})}
    work, total = _work(folder.path, settings)
    begin, made = time.monotonic(), 0
    with Ticker(total, "frames") as ticker:
        for frames in work:
            made += frames
            ticker.advance(frames, note=f"{made / (time.monotonic() - begin):.0f} frames/s")
    seconds = time.monotonic() - begin
    if not folder.writes:
        return
    splits = {split: VideoClips(folder.path, frames=1, split=split) for split in ("train", "val")}
    lines = [line for split, clips in splits.items() for line in measured(clips, split)]
    folder.episodes(lines)
    folder.results(_rows(cfg.source, lines, made, seconds), data=str(folder.path))
    _pictures(folder.media, splits["train"], cfg.source)
    frames = sum(line["frames"] for line in lines)
    print(f"{len(lines)} clips, {frames} frames in {folder.path}"
          + (f", {made} of them made now at {made / seconds:.0f} frames/s" if made else ", all of them were there"))
    print(f"to learn from them: dforce train video data={folder.path}")


def _work(root: Path, cfg: dict[str, Any]) -> tuple[Iterator[int], int]:
    """What makes the clips, yielding frames made, and how many frames there will be in all."""
    common = {key: cfg[key] for key in ("frames", "seed")}
    if cfg["source"] == "balls":
        clips = cfg["clips"] or 1000
        return (bouncing_balls(root, clips=clips, test_clips=cfg["test_clips"], size=cfg["size"] or 16,
                               balls=cfg["balls"], **common), (clips + cfg["test_clips"]) * cfg["frames"])
    clips = cfg["clips"] or 16
    looks = {key: cfg[key] for key in ("mazes", "test_mazes", "rooms", "zones", "textures", "floors")}
    return doom(root, clips=clips, size=cfg["size"] or 64, **looks, **common), cfg["mazes"] * clips * cfg["frames"]


def measured(clips: VideoClips, split: str) -> list[dict[str, Any]]:
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


def _rows(source: str, lines: list[dict[str, Any]], made: int, seconds: float) -> list[dict[str, Any]]:
    """Means over clips with their standard errors as intervals, and the speed of the generator."""
    def row(metric: str, values: list[float], unit: str, split: str | None = None) -> dict[str, Any]:
        mean, error = float(np.mean(values)), 1.96 * float(np.std(values)) / max(len(values) - 1, 1) ** 0.5
        several = len(values) > 1
        return {"task": f"{source} clips", "method": split or "all", "variant": {}, "metric": metric, "value": mean,
                "low": mean - error if several else None, "high": mean + error if several else None,
                "n": len(values), "seeds": 1, "unit": unit, "higher_is_better": None}

    rows = []
    for split in ("train", "val"):
        of_split = [line for line in lines if line["split"] == split]
        for metric, unit in (("brightness", "[-1, 1]"), ("contrast", "[-1, 1]"), ("speed", "rms a frame")):
            rows.append(row(metric, [line[metric] for line in of_split], unit, split))
        rows.append({**row("frames", [float(sum(line["frames"] for line in of_split))], "", split)})
    if made:
        rows.append(row("generated", [made / seconds], "frames/s"))
    return rows


def _pictures(media: Path, clips: VideoClips, source: str) -> None:
    """A contact sheet, a clip as a film, and where the camera of one shard went."""
    chosen = np.linspace(0, len(clips.clips) - 1, min(ROWS, len(clips.clips))).round().astype(int)
    films = []
    for i in chosen:
        clip = clips.clips[i]
        films.append(_enlarged(clip.read(np.linspace(0, clip.frames - 1, COLUMNS).round().astype(int))))
    from PIL import Image

    Image.fromarray(np.concatenate([np.concatenate(list(film), 1) for film in films])).save(media / "contact_sheet.png")
    first = clips.clips[chosen[0]]
    film = write_frames(media / "clip.mp4", list(_enlarged(first.read(np.arange(first.frames)))), fps=FPS)
    captions = {"contact_sheet.png": f"{len(chosen)} clips, {COLUMNS} frames of each from first to last.",
                film.name: f"One clip at {FPS} frames a second; the data set itself is not compressed."}
    if source == "doom":
        shard = [clip for clip in clips.clips if Path(clip.name).parent == Path(first.name).parent]
        _walk(media / "walk.png", [pose for clip in shard if (pose := clip.poses()) is not None])
        captions["walk.png"] = f"Where the camera went in {Path(first.name).parent.name}, in cells; a colour a clip."
    write_atomic(media / "captions.json", json.dumps(captions))


def _enlarged(video: np.ndarray) -> np.ndarray:
    """[T, H, W, C] -> [T, ~SIDE, ~SIDE, 3], even sides, pixels kept square."""
    factor = 2 * max(1, round(SIDE / video.shape[1] / 2))
    video = video if video.shape[-1] == 3 else np.repeat(video, 3, -1)
    return video.repeat(factor, 1).repeat(factor, 2)


def _walk(file: Path, poses: list[np.ndarray]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), dpi=100, facecolor="white", layout="tight")
    axes = figure.add_subplot(aspect="equal")
    for pose in poses:
        axes.plot(pose[:, 0], pose[:, 1], linewidth=1)
    axes.grid(True, color="#e3e7ee")
    axes.set_xlabel("x [cells]")
    axes.set_ylabel("y [cells]")
    figure.savefig(file)
