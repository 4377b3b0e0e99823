"""`dforce rollout`: the whole road once, small; the same frames after an interruption; mistakes in one message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dforce.cli.main import main
from dforce.report.rows import read_results
from tests.small_video import save_model

pytest.importorskip("av")
QUICK = ["samples=2", "steps=2", "save_every=4", "feature_steps=4", "window=8"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "checkpoint")


@pytest.fixture(autouse=True)
def few_balls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set "balls", with fewer clips: making them all takes longer than the tests."""
    monkeypatch.setattr("dforce.data.video.select.BALLS", {"train": 24, "val": 12})


def frames_in(folder: Path, samples: int = 2) -> np.ndarray:
    return np.fromfile(folder / "frames.u8", np.uint8).reshape(-1, samples, 16, 16, 1)


@pytest.mark.slow
def test_a_rollout_leaves_film_strip_curves_and_rows(checkpoint: Path, tmp_path: Path) -> None:
    import imageio.v3 as iio

    assert main(["rollout", f"checkpoint={checkpoint}", "frames=20", *QUICK, f"out={tmp_path / 'run'}"]) == 0
    run = tmp_path / "run"
    assert (run / "STATUS").read_text() == "done\n"
    made = frames_in(run)
    assert made.shape == (20, 2, 16, 16, 1) and (made[1:] != made[:-1]).any()
    film = iio.imread(run / "media" / "rollout.mp4", plugin="pyav")
    assert len(film) == 20
    below = film[7, 128 + 4 + 4:128 + 4 + 128:8, 4:128:8, 0]                   # middles of the enlarged pixels
    assert np.abs(below.astype(int) - made[7, 0, :, :, 0][:len(below)]).mean() < 6
    assert {"strip.png", "drift.png"} <= {file.name for file in (run / "media").iterdir()}
    assert "media/rollout.mp4" in (run / "index.html").read_text()
    rows = read_results(run / "results.json").rows
    metrics = {row["metric"] for row in rows if row["method"] == "forcing"}
    assert {"frechet", "frechet / floor", "brightness / real", "broken off", "psnr", "bad frames", "frames per second",
            "position error of balls"} <= metrics
    real = {row["metric"]: row["value"] for row in rows if row["method"] == "real video"}
    generated = {row["metric"]: row["value"] for row in rows if row["method"] == "forcing"}
    assert real["frechet"] < generated["frechet"] and real["bad frames"] < 0.01 < generated["bad frames"]
    lines = [json.loads(line) for line in (run / "episodes.jsonl").read_text().splitlines()]
    assert [line["sample"] for line in lines] == [0, 1]


@pytest.mark.slow
def test_what_was_interrupted_goes_on_with_the_same_frames(checkpoint: Path, tmp_path: Path) -> None:
    command = ["rollout", f"checkpoint={checkpoint}", "measure=false", "mode=noise", "eta=1.0", "refresh=[3,5]", *QUICK]
    assert main([*command, "frames=17", f"out={tmp_path / 'whole'}"]) == 0
    assert main([*command, "frames=9", f"out={tmp_path / 'parts'}"]) == 0
    with open(tmp_path / "parts" / "frames.u8", "ab") as file:
        file.write(b"a frame that was half written")
    assert main([*command, "frames=17", f"out={tmp_path / 'parts'}", "resume=true", "device=cpu"]) == 0
    assert np.array_equal(frames_in(tmp_path / "whole"), frames_in(tmp_path / "parts"))
    assert main([*command, "frames=17", f"out={tmp_path / 'unseen'}", "film=false"]) == 0
    assert np.array_equal(frames_in(tmp_path / "whole"), frames_in(tmp_path / "unseen"))
    assert not (tmp_path / "unseen" / "media" / "rollout.mp4").exists()


@pytest.mark.slow
def test_actions_from_a_file_and_at_random(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", shape=(3, 8, 8), stack=2, actions=3, data="")
    told = np.random.default_rng(0).integers(3, size=12)
    np.savez(tmp_path / "told.npz", actions=told)
    command = ["rollout", f"checkpoint={model}", "measure=false", "context=0", "frames=12", *QUICK, "refresh=[4,4]"]
    assert main([*command, f"actions={tmp_path / 'told.npz'}", f"out={tmp_path / 'file'}"]) == 0
    assert main([*command, "actions=random", f"out={tmp_path / 'random'}"]) == 0
    fed = {kind: np.fromfile(tmp_path / kind / "actions.f32", np.float32).reshape(12, 2, 3)
           for kind in ("file", "random")}
    assert np.array_equal(fed["file"][:, 0].argmax(1), told) and np.array_equal(fed["file"][:, 0], fed["file"][:, 1])
    assert not fed["random"][0].any() and (fed["random"][1:].sum(2) == 1).all()
    drawn = [np.fromfile(tmp_path / kind / "frames.u8", np.uint8) for kind in ("file", "random")]
    assert not np.array_equal(*drawn)                                          # the model hears what it is told


@pytest.mark.parametrize("override, told", [
    ("checkpoint=nowhere", "neither a checkpoint, nor a run folder"),
    ("checkpoint=maze2d-umaze", "is no model of video"),
    ("method=teacher", "method must be one of forcing, sliding, regression"),
    ("frames=0", "at least 1"),
    ("refresh=[4]", "refresh is [every, window]"),
    ("stpes=3", "did you mean 'steps'"),
    ("device=gpu", "device must be cpu, cuda or cuda:<number>, or null"),
    ("device=cuda:99", "give device=cpu, or none for the GPU if there is one"),
    ("data=nothing-there", "nothing-there"),
    ("i3d=nothing.pt", "FVD needs i3d_torchscript.pt"),
    ("features=nothing.safetensors", "there is no file of features"),
])
def test_mistakes_are_answered_in_one_message(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                              override: str, told: str) -> None:
    assert main(["rollout", f"checkpoint={checkpoint}", "frames=16", *QUICK, f"out={tmp_path / 'run'}", override]) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said


@pytest.mark.slow
def test_a_run_of_other_settings_is_not_gone_on_with(checkpoint: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    command = ["rollout", f"checkpoint={checkpoint}", "measure=false", *QUICK, f"out={tmp_path / 'run'}"]
    assert main([*command, "frames=4"]) == 0
    assert main([*command, "frames=8", "resume=true", "seed=3"]) == 2
    assert "seed was 0, is 3" in capsys.readouterr().err
    assert torch.from_numpy(frames_in(tmp_path / "run")).shape[0] == 4
