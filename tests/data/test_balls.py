"""Bouncing balls against closed forms: reflected straight lines, conserved energy, an event that has a known time."""

from __future__ import annotations

import pytest
import torch

from dforce.data.generate.balls import balls, locate, render, simulate


def reflected(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """A straight line folded into [low, high]: the triangle wave."""
    width = high - low
    return low + width - ((x - low).remainder(2 * width) - width).abs()


def test_one_ball_is_a_folded_straight_line():
    made = balls(16, 200, generator=torch.Generator().manual_seed(0), radius=0.1, speed=0.31)
    t = torch.arange(200, dtype=torch.float64)[:, None, None]
    wanted = reflected(made.positions[:, :1] + t * made.velocities[:, :1], 0.1, 0.9)
    torch.testing.assert_close(made.positions, wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_energy_stays_and_balls_neither_overlap_nor_leave(count):
    made = balls(16, 120, balls=count, generator=torch.Generator().manual_seed(1), radius=0.11, speed=0.2)
    energy = made.velocities.square().sum((-2, -1))
    torch.testing.assert_close(energy, energy[:, :1].expand_as(energy), rtol=1e-9, atol=0)
    assert made.positions.min() > 0.11 - 1e-9 and made.positions.max() < 0.89 + 1e-9
    gap = torch.cdist(made.positions, made.positions) + torch.eye(count)
    assert gap.min() > 0.22 - 1e-9
    assert (made.velocities.norm(dim=-1) - 0.2).abs().max() > 0.01  # they did hit each other


def test_a_head_on_collision_exchanges_velocities():
    position = torch.tensor([[[0.2, 0.5], [0.8, 0.5]]], dtype=torch.float64)
    velocity = torch.tensor([[[0.1, 0.0], [-0.05, 0.0]]], dtype=torch.float64)
    places, speeds = simulate(position, velocity, 5, radius=0.1)  # they meet after 0.4 / 0.15 = 2.67 frames
    torch.testing.assert_close(speeds[0, 2], velocity[0])
    torch.testing.assert_close(speeds[0, 3], velocity[0].flip(0))
    meet = 0.4 / 0.15
    torch.testing.assert_close(places[0, 4, 0, 0], torch.tensor(0.2 + 0.1 * meet - 0.05 * (4 - meet)).double())


def test_frames_show_where_the_balls_are():
    made = balls(8, 40, size=24, balls=3, generator=torch.Generator().manual_seed(2), radius=0.12)
    assert made.frames.shape == (8, 40, 3, 24, 24) and made.frames.dtype == torch.float32
    assert made.frames.min() == -1 and made.frames.max() == 1
    assert (locate(made.frames) - made.positions).abs().max() < 0.15 / 24
    assert balls(1, 2, balls=2, radius=0.1).frames[:, :, 2].eq(-1).all()  # a channel without a ball
    assert torch.isnan(locate(torch.full((1, 1, 1, 8, 8), -1.0))).all()
    # a picture turned by a quarter is the picture of the turned places
    turned = made.positions[..., [1, 0]]
    assert torch.equal(render(turned, 24, radius=0.12), made.frames.transpose(-1, -2))


def test_draws_follow_the_generator():
    one, two = (balls(3, 5, generator=torch.Generator().manual_seed(s)).frames for s in (3, 3))
    assert torch.equal(one, two)
    assert not torch.equal(one, balls(3, 5, generator=torch.Generator().manual_seed(4)).frames)


def test_what_has_no_room_is_refused():
    with pytest.raises(ValueError, match="balls 1 to 3, got 1, 5, 16, 4"):
        balls(1, 5, balls=4)
    with pytest.raises(ValueError, match="2 balls have room up to radius 0.167"):
        balls(1, 5, balls=2, radius=0.3)
