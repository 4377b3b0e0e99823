"""Does a world model remember a place? Measured where the camera comes back to a pose that it has left."""

from typing import NamedTuple

import torch
from torch import Tensor

from dforce.video.metrics.published import psnr


class Revisit(NamedTuple):
    """A frame of a clip at which the camera is back, and the last frame at that pose before it was left."""

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
        for t in range(start, len(walk)):  # the last frame that is far from the pose of t ends the earlier visit
            gone = left[t, :t].nonzero()
            if not len(gone):
                continue
            candidates = same[t, :int(gone[-1])].nonzero()
            if len(candidates):
                pairs.append(Revisit(b, t, int(candidates[-1])))
    return pairs


class RevisitGains(NamedTuple):
    """What is remembered at N revisits."""

    age: Tensor  # frames since the pose was left, [N]
    gain: Tensor  # dB by which the drawn frame is nearer to the true one than to other frames, on average, [N]
    real: Tensor  # the gain of the real frame at the earlier visit, that of a perfect memory, [N]
    clip: Tensor  # number of the clip, [N]


def memory(made: Tensor, truth: Tensor, pose: Tensor, *, start: int, known: int | None = None, seed: int = 0,
           **limits: float) -> RevisitGains:
    """The gains at all revisits of generated walks, [B, T, C, H, W] made and true, generated from frame `start` on.

    pose: [B, T, 3]. known: earlier visits before this frame only, None for all. limits: those of `revisits`.
    """
    if made.shape != truth.shape or made.shape[:2] != pose.shape[:2]:
        got = ", ".join(str([*each.shape]) for each in (made, truth, pose))
        raise ValueError(f"frames and poses must be of the same walks, got {got}")
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


def return_gain(frames: Tensor, before: Tensor, at: int) -> tuple[Tensor, Tensor, Tensor]:
    """How well a view comes back: at frame `at` of walks [B, T, C, H, W] the camera is where `before` [B, C, H, W] was
    seen, one frame earlier and later it is not. PSNR [B] of frame `at` with `before`, the mean PSNR of these two
    neighbours, and the gain, their difference, in dB; equal frames have 60.
    """
    if not 1 <= at < frames.shape[1] - 1:
        raise ValueError(f"frame {at} has no neighbours on both sides in walks of {frames.shape[1]} frames")
    near = psnr(frames[:, at - 1:at + 2], before[:, None].expand(-1, 3, -1, -1, -1)).clamp(max=60)
    beside = (near[:, 0] + near[:, 2]) / 2
    return near[:, 1], beside, near[:, 1] - beside
