"""Chooses the clips of one split of a data set, and checks that they fit one another."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dforce.data.draws import split_episodes
from dforce.data.generate.balls import balls
from dforce.data.pixels import to_uint8
from dforce.data.video.actions import action_tables, led_to, read_actions
from dforce.data.video.cache import cached
from dforce.data.video.clip import ArrayClip, BadClip, Clip, ClipSet
from dforce.data.video.index import describe, find_clips, mixed_rates, mixed_sizes

BALLS = {"train": 2000, "val": 200}  # clips of the data set "balls", of 64 frames, 16 x 16


class Selection(NamedTuple):
    """The clips of one split.

    actions: [T, A] of each clip, or None. width: A. size: (H, W) after resizing. skipped: name -> reason, of all
    splits. looked_at: number of files. notes: what a user should know. offset: of actions. title: name of the data set.
    fps: frames a second, None where no clip says.
    """

    clips: list[Clip]
    actions: list[np.ndarray | None]
    width: int
    size: tuple[int, int]
    skipped: dict[str, str]
    looked_at: int
    notes: list[str]
    offset: int
    title: str
    fps: float | None


def clips_of_split(data: str | os.PathLike | Sequence[Clip], *, span: int, size: int | tuple[int, int] | None,
                   split: str, held_out: float, seed: int, offset: int | None, classes: int | None,
                   fps: float | None, cache: bool | str | os.PathLike,
                   advance: Callable[[float], object] = lambda share: None) -> Selection:
    """The clips of a split. span: stored frames in a window; other arguments and ValueError as for `VideoClips`."""
    whole = _clip_set(data, fps, lambda share: advance(0.2 * share if cache else share))  # opened; then decoded
    offset = whole.offset if offset is None else offset
    skipped, raw = dict(whole.skipped), {}
    for clip in whole.clips:
        try:
            raw[clip.name] = read_actions(clip, offset)
            if clip.frames < span:
                raise BadClip(f"{clip.frames} frames, a window takes {span}")
        except BadClip as error:
            skipped[clip.name] = str(error)
    usable = [clip for clip in whole.clips if clip.name not in skipped]
    if not usable:
        raise ValueError(f"no clip can be used: {describe(skipped, len(whole.names))}")
    given = [raw[clip.name] for clip in usable]
    tables, width = action_tables(given, [clip.name for clip in usable], classes)
    without = [clip.name for clip, action in zip(usable, given, strict=True) if action is None]
    notes = whole.notes + ([f"{len(without)} of {len(usable)} clips have no actions, theirs are zero; the first is "
                            f"{without[0]}"] if width and without else [])
    shown, rate = _one_size(usable, size), _one_rate(usable)
    names = _of_split(whole, split, held_out, seed)
    pairs = [(clip, table) for clip, table in zip(usable, tables, strict=True) if clip.name in names]
    if not pairs:
        left = f"; {describe(skipped, len(whole.names))}" if skipped else ""
        raise ValueError(f"no {split} clip among the {len(usable)} that can be used (held_out={held_out}; to hold one "
                         f"out, two are needed){left}")
    actions = [None if table is None else led_to(table, clip.frames, offset) for clip, table in pairs]
    clips = [clip for clip, _ in pairs]
    if cache:
        clips, bad = cached(clips, shown, None if cache is True else cache, advance=lambda share: advance(0.8 * share))
        kept = [i for i, clip in enumerate(clips) if clip.name not in bad]
        clips, actions, skipped = [clips[i] for i in kept], [actions[i] for i in kept], skipped | bad
        if not clips:
            raise ValueError(f"no {split} clip can be decoded: {describe(skipped, len(whole.names))}")
    return Selection(clips, actions, width, shown, skipped, len(whole.names), notes, offset, whole.title,
                     rate)


def balls_clips(split: str, *, seed: int = 0, frames: int = 64, size: int = 16) -> list[Clip]:
    """The data set "balls": one bouncing ball, white on black, as clips in memory; poses are (x, y, vx, vy)."""
    import torch

    generator = torch.Generator().manual_seed(2 * seed + (split == "val"))
    made = balls(BALLS[split], frames, size, generator=generator)
    video = to_uint8(made.frames)
    state = torch.cat([made.positions, made.velocities], -1).flatten(2).numpy()
    return [ArrayClip.of(v, pose=s, name=f"{split}/{i:04}") for i, (v, s) in enumerate(zip(video, state, strict=True))]


def _clip_set(data: str | os.PathLike | Sequence[Clip], fps: float | None,
              advance: Callable[[float], object]) -> ClipSet:
    if data == "balls":
        clips: list[Clip] = []
        splits: list[str | None] = []
        for split in ("train", "val"):
            clips += balls_clips(split)
            splits += [split] * BALLS[split]
        return ClipSet(clips, splits, {}, [clip.name for clip in clips], [], title="balls")
    if isinstance(data, (str, os.PathLike)):
        return find_clips(data, fps=fps, advance=advance)
    names = [clip.name for clip in data]
    if len(set(names)) < len(names):
        raise ValueError("clips need names of their own: ArrayClip.of(video, name=...)")
    return ClipSet(list(data), [None] * len(data), {}, names, [])


def _of_split(whole: ClipSet, split: str, held_out: float, seed: int) -> set[str]:
    """Names of the clips of a split: by their folders, else drawn over all files.

    Bad files count too, so that one bad file moves no other one to another split.
    """
    named = {clip.name: where for clip, where in zip(whole.clips, whole.split, strict=True)}
    if "val" in named.values():
        return {name for name, where in named.items() if (where or "train") == split}
    train, val = split_episodes(len(whole.names), held_out, seed)
    return {whole.names[i] for i in (train if split == "train" else val)}


def _one_rate(clips: Sequence[Clip]) -> float | None:
    """Frames a second of all clips, None where no clip says; ValueError where they have several rates."""
    if mixed := mixed_rates(clips):
        raise ValueError(f"{mixed}: give fps= to have them all alike")
    return next((clip.fps for clip in clips if clip.fps), None)


def _one_size(clips: Sequence[Clip], size: int | tuple[int, int] | None) -> tuple[int, int]:
    """The size (H, W) of all frames; ValueError where the clips have several sizes and `size` is None."""
    mixed = mixed_sizes(clips)
    channels = {clip.channels for clip in clips}
    if len(channels) > 1 or (mixed and size is None):
        raise ValueError(f"{mixed}: " + ("give size= to have them all alike" if len(channels) == 1 else
                                         "grey and colour do not go together, convert one of them"))
    if size is None:
        return clips[0].height, clips[0].width
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size is a height and a width of at least one pixel, got {size}")
    return int(height), int(width)


def check_window(frames: int, stack: int, stride: int, batch: int, shards: int, split: str) -> None:
    """ValueError for arguments of `VideoClips` that do not fit one another."""
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    if min(frames, stack, stride, batch, shards) < 1:
        raise ValueError(f"frames, stack, stride, batch and virtual_shards must be positive, got {frames}, {stack}, "
                         f"{stride}, {batch}, {shards}")
    if frames % stack:
        near = max(stack, round(frames / stack) * stack)
        raise ValueError(f"{frames} frames are not divisible by stack {stack}: the nearest number is {near}")
