"""Actions of clips: one-hot or real numbers, shifted so that action t is the one that led to frame t."""

from collections.abc import Sequence

import numpy as np

from dforce.data.spaces import CHOICES, one_hot
from dforce.data.video.clip import BadClip, Clip

LARGEST = 10.0  # root mean square of real actions


def read_actions(clip: Clip, offset: int) -> np.ndarray | None:
    """Actions as stored, [R] integers or [R, A] float32, of a length that fits the frames; None where there are none.

    BadClip where their number is neither frames nor frames - offset.
    """
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


def action_tables(actions: Sequence[np.ndarray | None], names: Sequence[str],
                  classes: int | None) -> tuple[list[np.ndarray | None], int]:
    """All as [R, A] float32, integers one-hot over `classes` (None: as many as occur); and A, 0 without any actions.

    ValueError, which names clips, where kinds or widths of actions differ.
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
        return list(actions), 0
    (_, width), = kinds
    if width:
        _require_scaled([a for a in actions if a is not None], [n for a, n in zip(actions, names, strict=True)
                                                                if a is not None])
        return list(actions), width
    highest, name = max((int(a.max()), n) for a, n in zip(actions, names, strict=True) if a is not None and len(a))
    width = highest + 1 if classes is None else classes
    if width > CHOICES:
        raise ValueError(f"{name} has the action {highest:,}, and choices are counted from 0; at most {CHOICES:,} are "
                         "one-hot here: are these measurements? Store them as floats, (T, A)")
    if highest >= width:
        raise ValueError(f"actions={classes} means choices 0..{width - 1}, but {name} has {highest}")
    return [None if a is None else one_hot(a, width) for a in actions], width


def _require_scaled(actions: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """ValueError for real actions that are too large for a network, which gets them as they are."""
    square = np.array([(np.square(a, dtype=np.float64)).sum(0) for a in actions])
    size = np.sqrt(square.sum(0) / max(1, sum(map(len, actions))))
    if size.max(initial=0) > LARGEST:
        column = int(size.argmax())
        raise ValueError(f"column {column} of the actions has a root mean square of {size[column]:.3g} (most of it in "
                         f"{names[int(square[:, column].argmax())]}); a network gets them as they are and wants about "
                         f"1, at most {LARGEST:g}: divide them where they are stored")


def led_to(actions: np.ndarray, frames: int, offset: int) -> np.ndarray:
    """[R, A] as stored -> [frames, A]: row t is the action that led to frame t, stored as number t - offset.

    Row 0 is zero, for no action led to the first frame, and so is every row whose action is not stored.
    """
    source = np.arange(frames) - offset
    known = (source >= 0) & (source < len(actions))
    known[:1] = False
    moved = np.zeros((frames, actions.shape[1]), np.float32)
    moved[known] = actions[source[known]]
    return moved
