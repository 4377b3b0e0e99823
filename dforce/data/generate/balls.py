"""Bouncing balls, simulated exactly from collision to collision: a video whose drift can be measured physically."""

from typing import NamedTuple

import torch
from torch import Tensor

RADIUS, SPEED = 0.15, 0.06  # in sides of the box, and in sides a frame


class Balls(NamedTuple):
    """frames: [N, T, C, size, size] float32 in [-1, 1], C = 1 for one ball, else 3 and ball i is channel i.

    positions, velocities: [N, T, B, 2] float64, (x, y), x to the right and y down, in sides of the box (and a frame).
    """

    frames: Tensor
    positions: Tensor
    velocities: Tensor


def balls(n: int, frames: int, size: int = 16, balls: int = 1, generator: torch.Generator | None = None, *,
          radius: float = RADIUS, speed: float = SPEED) -> Balls:
    """n sequences of `frames` frames of 1 to 3 balls; radius in sides of the box, speed of each in sides a frame."""
    if min(n, frames, size) < 1 or not 1 <= balls <= 3:
        raise ValueError(f"n, frames and size are at least 1 and balls 1 to 3, got {n}, {frames}, {size}, {balls}")
    if not 0 < radius <= 0.5 / (1 + balls) or speed < 0:
        raise ValueError(f"{balls} balls have room up to radius {0.5 / (1 + balls):.3g} and speed is not negative, "
                         f"got radius {radius} and speed {speed}")
    position = _places(n, balls, radius, generator)
    angle = 2 * torch.pi * torch.rand(n, balls, generator=generator, dtype=torch.float64)
    velocity = speed * torch.stack([angle.cos(), angle.sin()], -1)
    positions, velocities = simulate(position, velocity, frames, radius=radius)
    return Balls(render(positions, size, radius=radius), positions, velocities)


def simulate(position: Tensor, velocity: Tensor, frames: int, *, radius: float = RADIUS) -> tuple[Tensor, Tensor]:
    """Positions and velocities [N, T, B, 2] at frames 0..T-1, from those at frame 0, [N, B, 2] float64."""
    places, speeds = [position], [velocity]
    for _ in range(frames - 1):
        position, velocity = _frame(position, velocity, radius)
        places.append(position)
        speeds.append(velocity)
    return torch.stack(places, 1), torch.stack(speeds, 1)


def render(positions: Tensor, size: int, *, radius: float = RADIUS) -> Tensor:
    """Discs with soft edges one pixel wide. positions [N, T, B, 2] -> [N, T, C, size, size] float32 in [-1, 1]."""
    centre = (torch.arange(size, dtype=positions.dtype, device=positions.device) + 0.5) / size
    dx, dy = centre - positions[..., 0:1], centre - positions[..., 1:2]
    distance = (dx[..., None, :] ** 2 + dy[..., :, None] ** 2).sqrt()
    frames = (2 * ((radius - distance) * size + 0.5).clamp(0, 1) - 1).float()
    count = frames.shape[2]
    if count in (1, 3):
        return frames
    return torch.cat([frames, frames.new_full((*frames.shape[:2], 3 - count, size, size), -1.0)], 2)


def locate(frames: Tensor) -> Tensor:
    """Centres of brightness, [N, T, C, H, W] -> [N, T, C, 2], (x, y) in sides of the box; NaN where all is dark."""
    size = frames.shape[-1]
    light = (frames.double() + 1).clamp(0, 2)
    light = torch.where(light < 0.5, 0.0, light)  # faint noise of a model's output is not part of a ball
    centre = (torch.arange(size, dtype=light.dtype, device=light.device) + 0.5) / size
    total = light.sum((-2, -1))
    return torch.stack([(light.sum(-2) * centre).sum(-1) / total, (light.sum(-1) * centre).sum(-1) / total], -1)


def _places(n: int, balls: int, radius: float, generator: torch.Generator | None) -> Tensor:
    """Positions [n, balls, 2] without two balls that touch: sequences are drawn again until it holds."""
    place = torch.empty(n, balls, 2, dtype=torch.float64)
    left = torch.arange(n)
    while len(left):
        drawn = torch.rand(len(left), balls, 2, generator=generator, dtype=torch.float64)
        place[left] = radius + (1 - 2 * radius) * drawn
        gap = torch.cdist(place[left], place[left]) + 9 * torch.eye(balls, dtype=torch.float64)
        left = left[(gap <= 2.05 * radius).flatten(1).any(1)]
    return place


def _frame(position: Tensor, velocity: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """State after one frame: every sequence goes from collision to collision until a whole frame has passed."""
    position, velocity = position.clone(), velocity.clone()
    left = position.new_ones(len(position))
    while (left > 0).any():
        side = torch.where(velocity > 0, position.new_tensor(1 - radius), position.new_tensor(radius))
        wall = torch.where(velocity == 0, torch.inf, ((side - position) / velocity).clamp(min=0))  # times [N, B, 2]
        pair = _pair_times(position, velocity, radius)  # [N, B, B]
        soonest = torch.minimum(wall.flatten(1).min(1).values, pair.flatten(1).min(1).values)
        step = torch.minimum(soonest, left)
        position += step[:, None, None] * velocity
        hit = (soonest <= left)[:, None, None]
        velocity = torch.where(hit & (wall <= soonest[:, None, None]), -velocity, velocity)
        velocity = _bounced(position, velocity, hit & (pair <= soonest[:, None, None]))
        left = left - step
    return position, velocity


def _pair_times(position: Tensor, velocity: Tensor, radius: float) -> Tensor:
    """[N, B, B] time until balls i < j touch, inf where they never do: the smaller root of |d + t w| = 2 radius."""
    count = position.shape[1]
    d, w = position[:, :, None] - position[:, None], velocity[:, :, None] - velocity[:, None]
    approach, square = (d * w).sum(-1), (w * w).sum(-1)
    inside = approach**2 - square * ((d * d).sum(-1) - 4 * radius**2)
    meets = (approach < 0) & (inside >= 0) & torch.ones(count, count, dtype=torch.bool, device=d.device).triu(1)
    time = (-approach - inside.clamp(min=0).sqrt()) / square.clamp(min=1e-300)
    return torch.where(meets, time.clamp(min=0), torch.inf)


def _bounced(position: Tensor, velocity: Tensor, touching: Tensor) -> Tensor:
    """Velocities after collisions: balls of equal mass exchange their components along the line of centres."""
    for i, j in touching.any(0).nonzero().tolist():
        line = position[:, i] - position[:, j]
        line = line / line.norm(dim=-1, keepdim=True)
        along = ((velocity[:, i] - velocity[:, j]) * line).sum(-1, keepdim=True) * line
        along = torch.where(touching[:, i, j, None], along, 0.0)
        velocity = velocity.clone()
        velocity[:, i] -= along
        velocity[:, j] += along
    return velocity
