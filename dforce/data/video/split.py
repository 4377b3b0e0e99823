"""Which clips are held out: whole ones where there are enough, else the ends of long ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dforce.data.video.clip import Clip, ClipSet

LEAST = 8           # clips that should be held out
PART = 5            # at most one in PART of the clips, or of the frames of a clip, is held out beyond what is wished
SHORT, LONG = 60, 300  # frames of the stretches that are cut off a clip


@dataclass(kw_only=True)
class Stretch(Clip):
    """Frames first..first + frames - 1 of another clip, origin."""

    origin: Clip
    first: int

    @staticmethod
    def of(clip: Clip, first: int, end: int) -> "Stretch":
        """Frames first..end - 1 of a clip."""
        return Stretch(name=f"{clip.name}[{first}:{end}]", path=clip.path, frames=end - first, height=clip.height,
                       width=clip.width, channels=clip.channels, fps=clip.fps, origin=clip, first=first)

    def read(self, index: np.ndarray) -> np.ndarray:
        return self.origin.read(np.asarray(index) + self.first)

    def actions(self) -> np.ndarray | None:
        return self._part(self.origin.actions())

    def poses(self) -> np.ndarray | None:
        return self._part(self.origin.poses())

    def _part(self, rows: np.ndarray | None) -> np.ndarray | None:
        return None if rows is None else rows[self.first:self.first + self.frames]


def of_split(whole: ClipSet, usable: Sequence[Clip], split: str, held_out: float, seed: int) -> tuple[
        list[tuple[int, Clip]], str]:
    """The clips of a split, as (number among the usable, clip or stretch of it), and a note for the user, "" for none.

    Folders decide where one is called test or val. Else files are drawn by their names, so that one added later or
    gone bad moves hardly any other: the share `held_out`, and up to LEAST where that is one in PART at most. Where
    more stretches can be cut off the ends of long clips than files be held out, these are held out instead.
    """
    named = {clip.name: where for clip, where in zip(whole.clips, whole.split, strict=True)}
    numbered = list(enumerate(usable))
    if "val" in named.values():
        return [(i, clip) for i, clip in numbered if (named[clip.name] or "train") == split], ""
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is the part of the clips kept for validation, in [0, 1), got {held_out}")
    if not held_out:
        return (numbered if split == "train" else []), ""
    count = len(whole.names)
    few = min(max(round(held_out * count), min(LEAST, count // PART), 1), count - 1)
    length = min(max(sum(clip.frames for clip in whole.clips) // (LEAST * PART), SHORT), LONG)
    stretches = _stretches(whole.clips, length, seed)
    if len(stretches) > few and few < LEAST:
        return _cut(numbered, stretches, length, split)
    order = sorted(whole.names, key=lambda name: _draw(name, seed))
    if not {clip.name for clip in usable} & set(order[:few]):  # all of them are bad
        order = [name for name in order if any(clip.name == name for clip in usable)]
        few = min(few, len(order) - 1)
    kept = set(order[:few])
    return [(i, clip) for i, clip in numbered if (clip.name in kept) == (split == "val")], ""


def _stretches(clips: Sequence[Clip], length: int, seed: int) -> list[str]:
    """Names of the clips off whose ends the LEAST first stretches are cut, one in PART of a clip's frames at most."""
    order = sorted(clips, key=lambda clip: _draw(clip.name, seed))
    most = max((clip.frames // PART // length for clip in clips), default=0)
    return [clip.name for turn in range(most) for clip in order if clip.frames // PART // length > turn][:LEAST]


def _cut(numbered: Sequence[tuple[int, Clip]], stretches: Sequence[str], length: int, split: str) -> tuple[
        list[tuple[int, Clip]], str]:
    """The clips without their ends, or these ends."""
    parts: list[tuple[int, Clip]] = []
    for i, clip in numbered:
        begin = clip.frames - stretches.count(clip.name) * length
        if split == "train":
            parts.append((i, Stretch.of(clip, 0, begin) if begin < clip.frames else clip))
        else:
            parts += [(i, Stretch.of(clip, first, first + length)) for first in range(begin, clip.frames, length)]
    return parts, (f"held out are {len(stretches)} stretches of {length} frames, the ends of {len(set(stretches))} of "
                   f"{len(numbered)} clips: there are too few clips to hold whole ones out")


def _draw(name: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
