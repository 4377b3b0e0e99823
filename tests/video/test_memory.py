"""Memory of places: revisits of a known walk, and models that remember all or nothing."""

from __future__ import annotations

import pytest
import torch

from dforce.video.metrics.memory import Revisit, memory, revisits


def walk():
    """Looks along x, turns right round in steps of 60 degrees, and is back at frame 6; then goes off and returns."""
    angle = [0, 60, 120, 180, 240, 300, 0, 0, 0, 0, 0]
    x = [0, 0, 0, 0, 0, 0, 0, 1, 2, 1, 0]
    return torch.tensor([[[float(a), 0.0, float(b)] for a, b in zip(x, angle, strict=True)]])


def test_revisits_of_a_known_walk():
    assert revisits(walk()) == [Revisit(0, 6, 0), Revisit(0, 9, 7), Revisit(0, 10, 6)]
    assert revisits(walk(), start=7) == [Revisit(0, 9, 7), Revisit(0, 10, 6)]
    assert revisits(walk()[:, :1].expand(1, 9, 3)) == []                       # who never left does not come back
    assert revisits(walk() + torch.tensor([5.0, -3.0, 340.0])) == revisits(walk())
    with pytest.raises(ValueError, match="x, y and an angle"):
        revisits(walk()[..., :2])


def test_who_remembers_gains_and_who_does_not_gains_nothing():
    g = torch.Generator().manual_seed(0)
    pose = walk().expand(20, -1, -1)
    views = torch.rand(20, 11, 1, 8, 8, generator=g) * 2 - 1
    truth = views.clone()
    for t, s in ((6, 0), (9, 7), (10, 6)):
        truth[:, t] = truth[:, s] + 0.05 * torch.randn(20, 1, 8, 8, generator=g)
    other = torch.rand(20, 11, 1, 8, 8, generator=g) * 2 - 1
    perfect, blind = memory(truth, truth, pose, start=2), memory(other, truth, pose, start=2)
    assert len(perfect.age) == 60 and sorted(set(perfect.age.tolist())) == [2, 4, 6]
    assert perfect.gain.min() > 5 and abs(float(blind.gain.mean())) < 0.3
    torch.testing.assert_close(perfect.real, blind.real)
    assert perfect.real.mean() > 5
    assert set(memory(truth, truth, pose, start=2, known=2).age.tolist()) == {6}
    assert len(memory(truth, truth, pose, start=11).age) == 0
    with pytest.raises(ValueError, match="the same walks"):
        memory(truth[:, :5], truth, pose, start=2)
