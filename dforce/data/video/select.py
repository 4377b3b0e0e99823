"""Chooses the clips of one split, and their actions, one-hot or real; checks that they fit one another."""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from dforce.data.columns import CHOICES, one_hot
from dforce.data.generate.balls import balls
from dforce.data.normalize import Affine
from dforce.data.pixels import to_uint8
from dforce.data.video.cache import CachedClip, cached
from dforce.data.video.clip import ArrayClip, BadClip, Clip, ClipSet
from dforce.data.video.index import describe, find_clips, several
from dforce.data.video.split import PART, SHORT, Stretch, of_split

BALLS = {"train": 2000, "val": 200}  # clips of the data set "balls", of 64 frames, 16 x 16
STEP = 4  # pixels, by which the sides of the shipped networks' pictures divide
SAME_RATE = 1.02  # 29.97 and 30 frames a second are one rate, 24 and 25 are two

Scale = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of each number of a real action


class Selection(NamedTuple):
    """The clips of one split, size (H, W) after resizing; actions: [T, A] of each clip, or None; width: A.

    skipped: name -> reason, of all splits. looked_at: files. notes: for the user. offset: of actions. title: of the
    set. fps: frames a second, None where no clip says. scale: that real actions were normalised by; None for choices.
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
    scale: Scale | None


def clips_of_split(data: str | os.PathLike | Sequence[Clip], *, span: int, size: int | tuple[int, int] | None,
                   split: str, held_out: float, seed: int, offset: int | None, classes: int | None,
                   fps: float | None, cache: bool | str | os.PathLike, scale: Scale | None = None,
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
    tables, width, scale = action_tables(given, [clip.name for clip in usable], classes, scale)
    without = [clip.name for clip, action in zip(usable, given, strict=True) if action is None]
    notes = whole.notes + ([f"{len(without)} of {len(usable)} clips have no actions, theirs are zero; the first is "
                            f"{without[0]}"] if width and without else [])
    shown, rate = _one_size(usable, size), _one_rate(usable)
    chosen, note = of_split(whole, usable, split, held_out, seed)
    notes += [each for each in (note, _crops(usable, shown), _repeats(usable, fps)) if each]
    skipped |= {clip.name: f"{clip.frames} frames, a window takes {span}" for _, clip in chosen if clip.frames < span}
    chosen = [(i, clip) for i, clip in chosen if clip.name not in skipped]
    if cache and chosen:
        clips, bad = cached([clip for _, clip in chosen], shown, None if cache is True else cache,
                            advance=lambda share: advance(0.8 * share))
        skipped |= bad
        chosen = [(i, clip) for (i, _), clip in zip(chosen, clips, strict=True) if clip.name not in bad]
    if not chosen:
        left = f"; {describe(skipped, len(whole.names))}" if skipped else ""
        raise ValueError(f"no {split} clip among the {len(usable)} that can be used (held_out={held_out}; to hold one "
                         f"out, two are needed, or {PART * SHORT} frames of one; held_out=0 holds none out){left}")
    actions = [_stretch_of(tables[i], usable[i], clip, offset) for i, clip in chosen]
    return Selection([clip for _, clip in chosen], actions, width, shown, skipped, len(whole.names), notes, offset,
                     whole.title, rate, scale)


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


def _stretch_of(table: np.ndarray | None, clip: Clip, part: Clip, offset: int) -> np.ndarray | None:
    """The actions [T, A] that led to the frames of a part of a clip."""
    stretch = part.origin if isinstance(part, CachedClip) else part
    first = stretch.first if isinstance(stretch, Stretch) else 0
    return None if table is None else led_to(table, clip.frames, offset)[first:first + part.frames]


def _crops(clips: Sequence[Clip], size: tuple[int, int]) -> str:
    """What is cut off where clips have another aspect ratio than `size`, "" where it is under 1%."""
    cut = [clip for clip in clips if _kept(clip, size) < 0.99]
    if not cut:
        return ""
    worst = min(cut, key=lambda clip: _kept(clip, size))
    long, (short, side) = max(size), sorted((worst.height, worst.width))
    other = max(round(long * short / side / STEP), 1) * STEP
    fitting = (other, long) if worst.height < worst.width else (long, other)
    better = f"; size=[{fitting[0]},{fitting[1]}] keeps {_kept(worst, fitting):.0%}"
    return (f"{len(cut)} of {len(clips)} clips have another shape than {size[0]}x{size[1]} (height x width), so their "
            f"borders are cut off: of {worst.name}, {worst.height}x{worst.width}, the middle {_kept(worst, size):.0%} "
            f"stay{better if _kept(worst, fitting) > _kept(worst, size) else ''}")


def _repeats(clips: Sequence[Clip], fps: float | None) -> str:
    """Which films have fewer frames a second than `fps` asks for; "" for none."""
    slow = [clip.name for clip in clips if fps and clip.distinct() < 0.95 * clip.frames]
    return (f"{len(slow)} of {len(clips)} films have fewer than fps={fps:g} frames a second, the first is {slow[0]}: "
            "theirs are shown again, and motion stands still meanwhile; a smaller fps= avoids that" if slow else "")


def _kept(clip: Clip, size: tuple[int, int]) -> float:
    """The part of a clip's picture that `resized` shows."""
    areas = clip.width * size[0], clip.height * size[1]
    return min(areas) / max(areas)


def _one_rate(clips: Sequence[Clip]) -> float | None:
    """Frames a second of all clips, None where no clip says; ValueError where they have several rates."""
    known = sorted((clip.fps, clip.name) for clip in clips if clip.fps)
    if known and known[-1][0] > SAME_RATE * known[0][0]:
        rates = several((f"{fps:.4g}", name) for fps, name in known)
        raise ValueError(f"the clips have several frame rates (frames a second): {rates}: give fps= to have them alike")
    return next((clip.fps for clip in clips if clip.fps), None)


def _one_size(clips: Sequence[Clip], size: int | tuple[int, int] | None) -> tuple[int, int]:
    """The size (H, W) of all frames; ValueError where the clips have several sizes and `size` is None."""
    sizes = {(clip.height, clip.width, clip.channels) for clip in clips}
    grey_too = len({channels for _, _, channels in sizes}) > 1
    if grey_too or len(sizes) > 1 and size is None:
        mixed = several((f"{clip.height}x{clip.width}x{clip.channels}", clip.name) for clip in clips)
        cure = "grey and colour do not go together, convert one" if grey_too else "give size= to have them all alike"
        raise ValueError(f"the clips have several resolutions (height x width x channels): {mixed}: {cure}")
    if size is None:
        return clips[0].height, clips[0].width
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f"size is a height and a width of at least one pixel, got {size}")
    return int(height), int(width)


def read_actions(clip: Clip, offset: int) -> np.ndarray | None:
    """Actions as stored, [R] integers or [R, A] float32, R = frames or frames - offset; None where there are none."""
    raw = clip.actions()
    if raw is None:
        return None
    raw = np.asarray(raw)
    raw = raw[:, 0] if raw.ndim == 2 and raw.shape[1] == 1 and raw.dtype.kind in "iu" else raw
    if not (raw.ndim == 1 and raw.dtype.kind in "iu" or raw.ndim in (1, 2) and raw.dtype.kind == "f"):
        raise BadClip(f"its actions are {raw.dtype} {raw.shape}, wanted is integers (T,) or floats (T, A)")
    if len(raw) not in (clip.frames, clip.frames - offset):
        raise BadClip(f"{len(raw)} actions for {clip.frames} frames")
    if raw.dtype.kind == "f":
        raw = raw.reshape(len(raw), -1).astype(np.float32)
        if not np.isfinite(raw).all():
            raise BadClip("its actions are not finite")
    elif len(raw) and raw.min() < 0:
        raise BadClip(f"its actions are numbers of choices, from 0 on, but one is {raw.min()}")
    return raw


def action_tables(actions: Sequence[np.ndarray | None], names: Sequence[str], classes: int | None,
                  scale: Scale | None = None) -> tuple[list[np.ndarray | None], int, Scale | None]:
    """All as [R, A] float32; A, 0 without any actions; and what real ones are normalised by, `scale` where it is given.

    Integers become one-hot over `classes` (None: as many as occur). Floats that are all 0 or 1 stay as they are.
    """
    kinds: dict[tuple[str, int], str] = {}
    for name, action in zip(names, actions, strict=True):
        if action is not None:
            kinds.setdefault(("integers", 0) if action.ndim == 1 else ("floats", action.shape[1]), name)
    if len(kinds) > 1:
        several = ", ".join(f"{name} has {kind}" + (f" of width {width}" if width else "")
                            for (kind, width), name in kinds.items())
        raise ValueError(f"the clips have different kinds of actions: {several}")
    if not kinds:
        return list(actions), 0, None
    (_, width), = kinds
    if width:
        return _normalised(actions, width, scale)
    highest, name = max((int(a.max()), n) for a, n in zip(actions, names, strict=True) if a is not None and len(a))
    width = highest + 1 if classes is None else classes
    if width > CHOICES:
        raise ValueError(f"{name} has the action {highest:,}, and choices are counted from 0; at most {CHOICES:,} are "
                         "one-hot here: are these measurements? Store them as floats, (T, A)")
    if highest >= width:
        raise ValueError(f"actions={classes} means choices 0..{width - 1}, but {name} has {highest}")
    return [None if a is None else one_hot(a, width) for a in actions], width, None


def _normalised(actions: Sequence[np.ndarray | None], width: int, scale: Scale | None) -> tuple[
        list[np.ndarray | None], int, Scale | None]:
    """Real actions less their mean and over their standard deviation, as `action_tables` returns them."""
    rows = np.concatenate([each for each in actions if each is not None])
    if scale is None and (np.isin(rows, (0, 1)).all() or not len(rows)):
        return list(actions), width, None
    affine = Affine.fit(rows, names=[f"{i} of the actions" for i in range(width)]) if scale is None else Affine(*scale)
    if len(affine.mean) != width:
        raise ValueError(f"the actions have {width} numbers, those that the model learnt from {len(affine.mean)}")
    mean, std = affine.mean.numpy(), affine.std.numpy()
    return [None if each is None else (each - mean) / std for each in actions], width, (mean.tolist(), std.tolist())


def led_to(actions: np.ndarray, frames: int, offset: int) -> np.ndarray:
    """[R, A] as stored -> [frames, A]: row t led to frame t, stored as number t - offset; zero where there is none."""
    source = np.arange(frames) - offset
    known = (source >= 0) & (source < len(actions))
    known[:1] = False
    moved = np.zeros((frames, actions.shape[1]), np.float32)
    moved[known] = actions[source[known]]
    return moved
