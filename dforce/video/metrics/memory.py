"""Does a world model remember a place? Compared where the camera comes back to a pose that it has left.

When a rollout is fed the actions of real video whose true poses are known, the frame at a revisit is known too: the
real one. A model that remembers draws it better than any other frame of the same walk; one that has forgotten does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dforce.video.metrics.frechet import psnr


class Revisit(NamedTuple):
    """clip, frame: when; before: the last frame at that pose before it was left; both numbered in the clip."""

    clip: int
    frame: int
    before: int


def revisits(pose: Tensor, *, near: float = 0.35, turned: float = 12.0, away: float = 1.0, faced: float = 60.0,
             start: int = 1) -> list[Revisit]:
    """Frames from `start` on at which the camera is back. pose [B, T, 3]: x, y, and the angle in degrees.

    Back: within `near` (units of x and y) and `turned` degrees of an earlier pose, having been `away` or further from
    it, or turned by `faced` degrees or more, in between. The latest such earlier frame counts.
    """
    if pose.ndim != 3 or pose.shape[2] != 3:
        raise ValueError(f"poses are x, y and an angle, [B, T, 3], got {[*pose.shape]}")
    pairs = []
    for b, walk in enumerate(pose.double()):
        apart = torch.cdist(walk[:, :2], walk[:, :2])
        angle = (walk[:, 2, None] - walk[:, 2] + 180).remainder(360) - 180
        same = (apart <= near) & (angle.abs() <= turned)
        left = (apart >= away) | (angle.abs() >= faced)
        for t in range(start, len(walk)):
            # since which frame has the pose of t been left? The last frame that is far from it
            gone = left[t, :t].nonzero()
            if not len(gone):
                continue
            candidates = same[t, :int(gone[-1])].nonzero()
            if len(candidates):
                pairs.append(Revisit(b, t, int(candidates[-1])))
    return pairs


class RevisitGains(NamedTuple):
    """age: frames since the pose was left [N]; gain: dB by which the drawn frame is nearer to the true one than to the
    other frames of the walk, on average [N]; real: the same of the real frame at the earlier visit, what a perfect
    memory would score [N]; clip: [N]."""

    age: Tensor
    gain: Tensor
    real: Tensor
    clip: Tensor


def memory(made: Tensor, truth: Tensor, pose: Tensor, *, start: int, known: int | None = None, seed: int = 0,
           **limits: float) -> RevisitGains:
    """made, truth: frames [B, T, C, H, W] of the same walks, generated from frame `start` on; pose [B, T, 3].

    Revisits from `start` on count whose earlier visit is before frame `known` (None: any): `known` = `start` asks for
    places seen in the real context alone. limits: of `revisits`. seed: of the other frames, 16 a revisit.
    """
    if made.shape != truth.shape or made.shape[:2] != pose.shape[:2]:
        raise ValueError(f"frames and poses must be of the same walks, got {[*made.shape]}, {[*truth.shape]}, "
                         f"{[*pose.shape]}")
    generator, rows = torch.Generator().manual_seed(seed), []
    for clip, frame, before in revisits(pose, start=start, **limits):
        if known is not None and before >= known:
            continue
        others = truth[clip, torch.randint(truth.shape[1], (16,), generator=generator)]

        def gain(drawn: Tensor, frame: int = frame, clip: int = clip, others: Tensor = others) -> Tensor:
            right = psnr(drawn, truth[clip, frame]).clamp(max=60)  # equal frames have an infinite one
            return right - psnr(drawn.expand_as(others), others).clamp(max=60).mean()

        rows.append((float(frame - before), float(gain(made[clip, frame])), float(gain(truth[clip, before])), clip))
    columns = torch.tensor(rows, dtype=torch.float64).view(-1, 4).unbind(1)
    return RevisitGains(columns[0], columns[1], columns[2], columns[3].long())
