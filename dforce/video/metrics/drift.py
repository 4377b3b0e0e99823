"""Drift: how far a long rollout moves away from real video, window by window, and when it breaks off from it.

Everything is compared with real clips: the Frechet distance of a window of generated frames against that of as many
real ones (the floor), brightness, contrast, detail and change against their spread over real windows.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dforce.core.frechet import frechet
from dforce.data.pixels import from_uint8
from dforce.report.statistics import Interval, jackknife_interval, spread_interval
from dforce.video.metrics.features import PairEncoder, clip_features

STATISTICS = ("brightness", "contrast", "detail", "change", "saturated")
BREAK = 4.0        # standard deviations of real windows: beyond, a window is no longer like any real one
PATIENCE = 2       # windows in a row
FROZEN = 0.2       # of the change of real video: below, the picture stands still
LEAST = 0.1        # of its mean: the least that counts as a standard deviation, for a statistic that hardly varies

_LAPLACE = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])


def statistics(frames: Tensor) -> dict[str, Tensor]:
    """Statistics of each frame of clips [B, T, C, H, W] in -1..1; name -> [B, T].

    brightness: mean in 0..1. contrast: standard deviation over the pixels. detail: mean |Laplacian|. change: mean
    |difference from the frame before| (NaN at the first). saturated: part of the pixels within 1% of black or white.
    """
    size, time, channels = frames.shape[:3]
    flat = frames.flatten(0, 1).float()
    kernel = _LAPLACE.to(flat).expand(channels, 1, 3, 3)
    detail = F.conv2d(flat, kernel, groups=channels).abs().flatten(1).mean(1)
    change = (frames[:, 1:] - frames[:, :-1]).abs().flatten(2).mean(2)
    values = {"brightness": (flat.flatten(1).mean(1) + 1) / 2, "contrast": flat.flatten(1).std(1), "detail": detail,
             "saturated": (flat.abs() > 0.98).float().flatten(1).mean(1)}
    return {**{name: value.view(size, time) for name, value in values.items()},
            "change": torch.cat([change.new_full((size, 1), torch.nan), change], 1)}


def windows_of(values: Tensor, window: int) -> Tensor:
    """Means over windows of `window` frames that do not overlap: [B, T] -> [B, T // window]; NaN entries left out."""
    count = values.shape[1] // window
    return values[:, :count * window].unflatten(1, (count, window)).nanmean(2)


class Reference(NamedTuple):
    """What drift is measured against."""

    encoder: PairEncoder
    features: Tensor  # of pairs of real frames, [M, F]
    groups: Tensor  # of other real clips, [N, T - 1, F], for the floor
    mean: dict[str, float]  # of the window means of each statistic, over real windows
    std: dict[str, float]  # of the same, at least a tenth of the mean
    band: dict[str, tuple[float, float]]  # what 95% of these means lie in
    window: int  # frames of a window


def reference(encoder: PairEncoder, real: Tensor, others: Tensor, *, window: int) -> Reference:
    """The reference of real clips, and of others for the floor, [N, T, C, H, W]; ValueError if a window is longer."""
    if min(real.shape[1], others.shape[1]) < max(window, 2):
        raise ValueError(f"{min(real.shape[1], others.shape[1])} frames a clip: choose a smaller window than {window}")
    values = statistics(torch.cat([real[:, :others.shape[1]], others[:, :real.shape[1]]]))
    means = {name: windows_of(value, window).flatten() for name, value in values.items()}
    mean = {name: float(value.mean()) for name, value in means.items()}
    std = {name: max(float(value.std()), LEAST * abs(mean[name]), 1e-4) for name, value in means.items()}
    band = {name: (float(value.quantile(0.025)), float(value.quantile(0.975))) for name, value in means.items()}
    return Reference(encoder, clip_features(encoder, real).flatten(0, 1), clip_features(encoder, others), mean, std,
                     band, window)


class Drift(NamedTuple):
    """Rollouts beside real video, window by window."""

    window: int
    values: dict[str, Tensor]  # statistic -> means of windows, [B, n]
    z: Tensor  # the largest |z| of all statistics, [B, n]; of `saturated` only where there is too much of it
    broken: Tensor  # the frame at which a rollout broke off from real video, [B], -1 where it did not
    frozen: Tensor  # windows that stand still, bool [B, n]


def drift(frames: np.ndarray, of: Reference) -> Drift:
    """The drift of generated frames, uint8 [T, B, H, W, C], read window by window. ValueError for less than one."""
    size = of.window
    if len(frames) < size:
        raise ValueError(f"a rollout of {len(frames)} frames is shorter than one window of {size}")
    parts = []
    for start in range(0, len(frames) - size + 1, size):
        begin = max(start - 1, 0)  # the change at the first frame of a window is from the frame before it
        clip = from_uint8(frames[begin:start + size]).transpose(0, 1)
        parts.append({name: value[:, start - begin:] for name, value in statistics(clip).items()})
    values = {name: torch.cat([windows_of(part[name], size) for part in parts], 1) for name in STATISTICS}
    off = {name: (values[name] - of.mean[name]) / of.std[name] for name in STATISTICS}
    off["saturated"] = off["saturated"].clamp(min=0)  # a black that is not quite black is no sign of breaking off
    z = torch.stack([each.abs() for each in off.values()]).amax(0)
    return Drift(size, values, z, broken_at(z, size), values["change"] < FROZEN * of.mean["change"])


def broken_at(z: Tensor, window: int) -> Tensor:
    """First frame of PATIENCE windows in a row with |z| > BREAK or not finite, else -1: z [B, n] -> [B]."""
    beyond = ~(z.abs() <= BREAK)
    run = beyond.unfold(1, PATIENCE, 1).all(2) if z.shape[1] >= PATIENCE else beyond[:, :0]
    first = run.long().argmax(1) if run.shape[1] else torch.zeros(len(z), dtype=torch.long)
    return torch.where(run.any(1), first * window, -1)


def frechet_interval(features: Tensor, to: Tensor) -> Interval:
    """The Frechet distance of clips' features [B, n, F] from `to` [M, F], with its jackknife interval over clips."""
    size = len(features)
    without = [frechet(torch.cat([features[:b], features[b + 1:]]).flatten(0, 1), to) for b in range(size)
               ] if size > 2 else [math.nan] * size
    return jackknife_interval(frechet(features.flatten(0, 1), to), np.array(without))


def floor(of: Reference, clips: int, frames: int, *, repeats: int = 8, seed: int = 0) -> Interval:
    """The distance of real clips from real clips: mean over `repeats` draws of clips x frames, and what 95% of them lie
    in, nan where draws repeat, for there are too few clips."""
    generator = torch.Generator().manual_seed(seed)
    total, time = of.groups.shape[:2]
    length, size = min(frames - 1, time), min(clips, total)
    drawn, different = [], set()
    for _ in range(repeats):
        chosen = torch.randperm(total, generator=generator)[:size]
        start = torch.randint(time - length + 1, (size,), generator=generator)
        stretch = torch.stack([of.groups[c, s:s + length] for c, s in zip(chosen, start, strict=True)])
        drawn.append(frechet(stretch.flatten(0, 1), of.features))
        different.add(frozenset(zip(chosen.tolist(), start.tolist(), strict=True)))
    if len(different) < repeats:
        return Interval(float(np.mean(drawn)), math.nan, math.nan, len(different))
    return spread_interval(np.array(drawn))


def distances(frames: np.ndarray, of: Reference, spans: Sequence[tuple[int, int]]) -> list[Interval]:
    """The distance of each span of frames (begin, end) of a rollout uint8 [T, B, H, W, C] from real video."""
    intervals = []
    for begin, end in spans:
        if not 0 <= begin < end <= len(frames) or end - begin < 2:
            raise ValueError(f"frames {begin}..{end} are no span of a rollout of {len(frames)} frames")
        clip = from_uint8(frames[begin:end]).transpose(0, 1)
        intervals.append(frechet_interval(clip_features(of.encoder, clip), of.features))
    return intervals


def worst_span(frames: np.ndarray, of: Reference, length: int = 100) -> tuple[int, int]:
    """The span (begin, end) of `length` frames, beginning at a multiple of it, that is the furthest from real video."""
    spans = [(begin, begin + length) for begin in range(0, max(len(frames) - length, 0) + 1, length)]
    far = [frechet(clip_features(of.encoder, from_uint8(frames[begin:end]).transpose(0, 1)).flatten(0, 1), of.features)
           for begin, end in spans]
    return spans[int(np.argmax(far))]


def spans_of(frames: int, length: int = 100) -> list[tuple[int, int]]:
    """(begin, end) of the first, middle and last `length` frames that do not overlap: 0-100, 400-500, 900-1000."""
    length = min(length, frames)
    middle = (frames // 2 - length // 2) // length * length
    starts = [0, middle, frames - length]
    return [(start, start + length) for i, start in enumerate(starts)
            if i == 0 or start >= starts[0] + length and (i == 1 and start + length <= starts[2] or i == 2)]
