"""Rollouts of bouncing balls in physical units, against the dynamics that made the data and are known exactly."""

import torch
from torch import Tensor

from dforce.data.generate.balls import RADIUS, SPEED, locate, render

BAD_RESIDUAL, BAD_MASS = 0.03, 0.5  # mean squared pixel distance from any frame with balls; part of the light


def physics(frames: Tensor, positions: Tensor | None = None, *, balls: int = 1, radius: float = RADIUS,
            speed: float = SPEED) -> dict[str, Tensor]:
    """Physical quantities of the balls in clips [B, T, C, H, W] in -1..1; name -> [B, T], NaN where undefined.

    mass: light in the picture over that of the same balls drawn whole, 1 if right.
    residual: mean squared distance of the picture from that of balls drawn at the located centres.
    speed: way of the centres since the frame before, over `speed`; below 1 at a bounce, in real video too.
    energy: the square of that, averaged over the balls.
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
