"""Memory of places: revisits of a known walk, and models that remember all or nothing."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest
import torch

from dforce.report.rows import read_results
from dforce.video.metrics.memory import Revisit, memory, return_gain, revisits
from dforce.video.metrics.published import psnr
from tests.small_video import save_model

TURNS = Path(__file__).parents[2] / "scripts" / "studies" / "video" / "turns.py"


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


def test_the_gain_of_a_return_is_that_of_the_frame_over_its_neighbours():
    g = torch.Generator().manual_seed(0)
    before, film = torch.rand(2, 1, 8, 8, generator=g), torch.rand(2, 7, 1, 8, 8, generator=g)
    film[0, 4] = before[0]
    film[1, 4] = before[1] + 0.1
    back, beside, gain = return_gain(film, before, 4)
    near = torch.stack([psnr(film[:, t], before) for t in (3, 5)]).mean(0)
    assert back.tolist() == pytest.approx([60, 20 * math.log10(2 / 0.1)], abs=1e-4)
    torch.testing.assert_close(beside, near)
    torch.testing.assert_close(gain, back - near)
    with pytest.raises(ValueError, match="frame 6 has no neighbours"):
        return_gain(film, before, 6)


@pytest.mark.slow
def test_after_a_turn_the_engine_sees_what_it_saw_and_a_model_without_memory_does_not(tmp_path, monkeypatch):
    """The study of turns, in one maze with a model that was not trained."""
    pytest.importorskip("vizdoom")
    monkeypatch.setattr("sys.argv", ["turns.py", str(save_model(tmp_path / "model", shape=(3, 16, 16), actions=3)),
                                     "--mazes", "2", "--out", str(tmp_path / "run")])
    runpy.run_path(str(TURNS), run_name="__main__")
    rows = {(row["method"], row["variant"]["way"]): row["value"] for row in read_results(
        tmp_path / "run" / "results.json").rows if row["metric"] == "gain of the return"}
    for way in ("turn left", "turn right", "out and back"):
        assert rows["engine", way] > 5 > 2 > abs(rows[str(tmp_path / "model"), way])
