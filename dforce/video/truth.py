"""Rows about rollouts where the truth is known: what really followed, places that are seen again, exact dynamics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.data.generate.balls import RADIUS, SPEED, locate, render, simulate
from dforce.data.pixels import from_uint8
from dforce.report.rows import Row
from dforce.video.metrics.drift import frechet_interval, spans_of
from dforce.video.metrics.measure import RowMaker
from dforce.video.metrics.memory import memory
from dforce.video.metrics.published import I3D, clips_of, load_lpips, psnr, ssim
from dforce.video.reference_clips import RealVideo, ReferenceClips

AGES = (1, 20), (20, 60), (60, 300)  # frames since a place was left
FIRST = (10, 50, 100)  # frames over which a rollout is compared with what really came
UNITS = {"mass": "times the balls'", "residual": "pixel value squared", "speed": "times the balls'",
         "energy": "times the balls'", "bad": "fraction of frames"}
BAD_RESIDUAL, BAD_MASS = 0.03, 0.5  # mean squared pixel distance from any frame with balls; part of the light


def truth_rows(real: RealVideo, made: np.ndarray, start: ReferenceClips, maker: RowMaker, *,
               lpips: Sequence[str] | None, seed: int) -> list[Row]:
    """PSNR, SSIM and LPIPS of the first frames with what really followed; later another future is as good."""
    whole, _ = real.whole(start.numbers, start.frames.shape[1] + max(FIRST))
    truth = whole[:, start.frames.shape[1]:]
    time = min(truth.shape[1], len(made))
    if time == 0:
        return []
    guess = from_uint8(made[:time]).transpose(0, 1)
    scores: dict[str, tuple[Any, str, bool]] = {"psnr": (psnr, "dB", True)}
    if min(truth.shape[-2:]) >= 11:
        scores["ssim"] = (ssim, "", True)
    if lpips:
        scores["lpips"] = (load_lpips(lpips), "", False)
    return [maker.having(frames=f"0-{end}").mean(name, score(guess[:, :end], truth[:, :end]).mean(1), seed=seed,
                                                   unit=unit, higher=higher)
            for end in FIRST if end <= time for name, (score, unit, higher) in scores.items()]


def memory_rows(real: RealVideo, made: np.ndarray, fed: np.ndarray | None, start: ReferenceClips,
                maker: RowMaker) -> list[Row]:
    """How much better the right frame is drawn at revisits, where true poses and the clips' actions are known."""
    if start.actions is None or fed is None:
        return []
    before = start.frames.shape[1]
    whole, actions = real.whole(start.numbers, before + len(made))
    time = min(whole.shape[1], before + len(made))
    pose = real.set.poses(start.numbers, frames=time)
    assert actions is not None
    same = np.array_equal(actions[:, before:time].transpose(0, 1).numpy(), fed[:time - before])
    if pose is None or pose.shape[2] != 3 or not same or time <= before:
        return []
    drawn = torch.cat([start.frames, from_uint8(made[:time - before]).transpose(0, 1)], 1)
    rows = []
    for name, known in (("any place", None), ("of the context", before)):
        gains = memory(drawn, whole[:, :time], pose, start=before, known=known)
        for young, old in AGES:
            chosen = (gains.age >= young) & (gains.age < old)
            if chosen.any():
                part = maker.having(**{"revisit of": name, "after frames": f"{young}-{old}"})
                rows += [who.mean("memory gain", gain[chosen], unit="dB", higher=True)
                         for who, gain in ((part, gains.gain), (part.real(), gains.real))]
    return rows


def ball_rows(truth: Tensor, made: np.ndarray, maker: RowMaker, seed: int) -> list[Row]:
    """Mass, speed and shape of the balls of the first, middle and last frames, and of real video [B, T, 1, H, W]."""
    rows = _balls(truth, maker.real(), seed)
    for begin, end in spans_of(len(made)):
        rows += _balls(from_uint8(made[begin:end]).transpose(0, 1), maker.having(frames=f"{begin}-{end}"), seed)
    return rows


def _balls(frames: Tensor, maker: RowMaker, seed: int) -> list[Row]:
    lit = int((frames.amax((0, 1, 3, 4)) > 0).sum())
    values = physics(frames, balls=max(lit, 1))
    return [maker.mean(f"{name} of balls" if name != "bad" else "bad frames", values[name].nanmean(1), seed=seed,
                         unit=unit, higher=False if name in ("residual", "bad") else None)
            for name, unit in UNITS.items() if not values[name].isnan().all()]


def position_rows(real: RealVideo, made: np.ndarray, start: ReferenceClips, maker: RowMaker, seed: int) -> list[Row]:
    """Distance in pixels of the balls from where they really are, by the exact dynamics from the end of the context."""
    pose = real.set.poses(start.numbers, frames=start.frames.shape[1])
    assert pose is not None and pose.shape[2] == 4                             # x, y and their velocities
    now = pose[:, -1].double()[:, None]
    places, _ = simulate(now[..., :2], now[..., 2:], max(FIRST) + 1)
    rows = []
    for end in [n for n in FIRST if n <= len(made)]:
        error = physics(from_uint8(made[:end]).transpose(0, 1), places[:, 1:end + 1])["error"].nanmean(1)
        rows.append(maker.having(frames=f"0-{end}").mean(
            "position error of balls", error.nan_to_num(real.model.shape[1]), seed=seed, unit="pixels", higher=False))
    return rows


def fvd_rows(i3d: str, made: np.ndarray, learnt: Tensor, held_out: Tensor, maker: RowMaker) -> list[Row]:
    """FVD by the network in file `i3d` of clips of 16 frames, and that of held-out real clips: few clips bias it."""
    look = I3D(i3d)
    to = look(clips_of(learnt))
    parts = [(maker.real(), held_out)]
    parts += [(maker.having(frames=f"{begin}-{end}"), from_uint8(made[begin:end]).transpose(0, 1))
              for begin, end in spans_of(len(made)) if end - begin >= 16]
    return [part.row("fvd[i3d]", frechet_interval(look(clips_of(frames))[:, None], to), higher=False)
            for part, frames in parts]


def physics(frames: Tensor, positions: Tensor | None = None, *, balls: int = 1, radius: float = RADIUS,
            speed: float = SPEED) -> dict[str, Tensor]:
    """Physical quantities of the balls in clips [B, T, C, H, W] in -1..1; name -> [B, T], NaN where undefined.

    mass: light in the picture over that of the same balls drawn whole, 1 if right.
    residual: mean squared distance of the picture from that of balls drawn at the located centres.
    speed: way of the centres since the frame before, over `speed`; below 1 at a bounce. energy: the mean of its square.
    error: distance of the centres from the true `positions` [B, T, balls, 2] in pixels, if these are given.
    bad: 1 where the residual exceeds .03 or the mass is off by more than half.
    """
    size = frames.shape[-1]
    centres = locate(frames)[:, :, :balls]
    seen = centres.nan_to_num(0.5)
    wanted = render(seen, size, radius=radius)
    light, due = ((x + 1).sum((2, 3, 4)) for x in (frames, wanted))
    residual = (frames - wanted).square().flatten(2).mean(2)
    moved = (centres[:, 1:] - centres[:, :-1]).norm(dim=-1) / speed
    lost = moved.new_full((len(frames), 1), torch.nan)
    values = {"mass": light / due, "residual": residual, "speed": torch.cat([lost, moved.mean(2)], 1),
             "energy": torch.cat([lost, moved.square().mean(2)], 1)}
    if positions is not None:
        values["error"] = (centres - positions).norm(dim=-1).mean(2) * size
    bad = (residual > BAD_RESIDUAL) | ((values["mass"] - 1).abs() > BAD_MASS) | centres.isnan().flatten(2).any(2)
    return {name: value.double() for name, value in {**values, "bad": bad}.items()}
