"""The world models that ship: balls go on as balls do, far past the windows learnt from; mazes can be steered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.cli.main import main
from dforce.core.noise import Noise
from dforce.report.rows import read_results
from dforce.video.evaluation import MetricSettings
from dforce.video.model import load_video
from dforce.video.reference_clips import RealVideo
from dforce.video.rollout_run import RolloutRun
from dforce.video.server import World
from dforce.video.stream import Recipe, continued
from dforce.video.truth import physics


@pytest.fixture(autouse=True)
def few_balls(monkeypatch):
    """The data set "balls", with fewer clips: making them all takes longer than the tests."""
    monkeypatch.setattr("dforce.data.video.select.BALLS", {"train": 24, "val": 12})


@pytest.mark.slow
def test_balls_keep_their_mass_and_speed():
    """60 frames, five times a training window, against real clips of the same law; a still picture has speed 0."""
    model = load_video("balls")
    real = RealVideo(model, "balls", window=24)
    clips = real.clips(4, 64).frames
    assert model.shape == (1, 16, 16) and model.window == 12 and model.data == "balls"
    made = continued(model, Recipe(), clips[:, :4], 60, noise=Noise(0)).clamp(-1, 1)
    (mass, speed), (true_mass, true_speed), (_, still) = (
        [physics(frames)[name].nanmean() for name in ("mass", "speed")]
        for frames in (made, clips[:, 4:], clips[:, 4:5].expand(-1, 60, -1, -1, -1)))
    assert mass / true_mass == pytest.approx(1, abs=0.15)
    assert speed / true_speed == pytest.approx(1, abs=0.25)
    assert still < 0.1 * true_speed


@pytest.mark.slow
def test_it_rolls_out_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    assert main(["rollout", "checkpoint=balls", "fast_dev_run=true", "out=run"]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "media" / "rollout.mp4").stat().st_size > 500


@pytest.mark.slow
def test_mazes_are_steered_from_nothing():
    """No clips at hand: a visitor begins in a frame of noise's own making, and left is not right."""
    model = load_video("doom16")
    settings = {"frames": 1, "samples": 1, "context": None, "data": None, "actions": None, "seed": 0, "measure": None,
                "film": False, "fps": 15, "save_every": 1}
    rollout = RolloutRun(model, Recipe(), MetricSettings(), **settings)
    assert rollout.real_video() is None and rollout.action_source == "walker" and rollout.context_frames == 0
    for key, value in (("measure", True), ("context", 4), ("actions", "data")):
        with pytest.raises(ValueError, match="does not say what it learnt from"):
            RolloutRun(model, Recipe(), MetricSettings(), **{**settings, key: value})
    seen = []
    for held in (0, 1):
        world = World(model, Recipe(**model.config["recipe"]), None, context=0, seed=0)
        world.held = held
        seen.append(torch.cat([world.step() for _ in range(6)]))
    assert seen[0].shape == (6, 3, 16, 16) and seen[0].std() > 0.05
    assert (seen[0] - seen[1]).abs().mean() > 0.02  # the noise is the same: nothing but the key differs


def test_what_ships_needs_no_further_key(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["rollout", "checkpoint=doom16", "fast_dev_run=true", "film=false", "out=run"]) == 0
    (row,) = read_results("run/results.json").rows
    assert row["variant"]["actions"] == "walker" and row["variant"]["history"] == 1.5
    assert main(["rollout"]) == 2 and "ships with dforce (balls, doom16;" in capsys.readouterr().err


@pytest.mark.slow
def test_its_recipe_comes_along_unless_others_are_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    alone = ["rollout", "checkpoint=doom16", "context=0", "actions=random", "measure=false", "frames=2", "samples=1"]
    for given, steps in (([], 5), (["steps=3"], 3), (["steps=2"], 2), (["method=forcing"], 10)):
        assert main([*alone, *given, f"out=run{steps}"]) == 0, capsys.readouterr().err
        (told,) = [row["variant"] for row in read_results(tmp_path / f"run{steps}" / "results.json").rows]
        assert (told["steps"], told.get("history")) == (steps, 1.5 if steps in (3, 5) else None)  # 2 take no history
    assert "settings that come with the checkpoint: history=1.5 stabilise_std=0.1\n" in capsys.readouterr().out


@pytest.mark.slow
def test_its_walker_comes_along_and_walks_without_data(tmp_path, monkeypatch):
    """No clips are there to learn from; forward is what a walker does most, and the same seed walks the same way."""
    monkeypatch.chdir(tmp_path)
    for name, frames in (("one", 30), ("again", 6)):
        assert main(["rollout", "checkpoint=doom16", "context=0", "measure=false", "actions=walker", f"frames={frames}",
                     "samples=4", "film=false", f"out={name}"]) == 0
    told = np.fromfile(tmp_path / "one" / "actions.f32", np.float32).reshape(30, 4, 3)
    assert (told[0] == 0).all() and (told[1:].sum(-1) == 1).all()               # nothing leads to the first frame
    share = told[1:].mean((0, 1))
    assert share[2] > 0.3 and share[2] == share.max()
    again = (tmp_path / "again" / "frames.u8").read_bytes()
    assert again and (tmp_path / "one" / "frames.u8").read_bytes()[:len(again)] == again
    assert (tmp_path / "one" / "walker.safetensors").is_file()                   # the engine may be walked by it
