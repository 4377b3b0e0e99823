"""The drift table: equal arithmetic for all methods, and the whole road once, small."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from dforce.report.rows import read_results

FILE = Path(__file__).resolve().parents[2] / "scripts" / "studies" / "video" / "drift.py"
SMALL = ["net.width=8", "net.latent=8", "batch=4", "frames=8", "fit.validate_every=4", "samples=0"]


@pytest.fixture(scope="module")
def study():
    sys.path.append(str(FILE.parent))  # as for a script that is started
    spec = importlib.util.spec_from_file_location("drift_study", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["drift_study"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def few_balls(monkeypatch):
    monkeypatch.setattr("dforce.data.video.select.BALLS", {"train": 24, "val": 12})


@pytest.mark.slow
def test_methods_train_for_equal_arithmetic(study):
    asked = argparse.Namespace(steps=100, data="balls", overrides=SMALL)
    assert study.steps_of(asked, "forcing") == 100 == study.steps_of(asked, "full sequence")
    assert 50 < study.steps_of(asked, "teacher") < 90                          # a second look, without a head
    assert study.steps_of(asked, "teacher") == study.steps_of(asked, "regression")


@pytest.mark.slow
def test_the_whole_study_once_and_again_for_nothing(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["drift.py", "--steps", "4", "--frames", "24", "--samples", "2", "--window", "8",
                                     "--out", str(tmp_path), "--methods", "forcing", "full sequence", "regression",
                                     "--", *SMALL])
    study.main()
    rows = read_results(tmp_path / "results.json").rows
    assert {"forcing", "full sequence", "regression", "real video"} == {row["method"] for row in rows}
    assert {row["variant"]["rollout"] for row in rows if row["method"] != "real video"} == {"", "refreshed"}
    assert (tmp_path / "brightness.png").is_file()
    capsys.readouterr()
    study.main()
    assert "dforce train" not in capsys.readouterr().out                       # all of it was there already
    monkeypatch.setattr("sys.argv", [*sys.argv[:sys.argv.index("--")], "--names", "more steps", "--way", "forcing",
                                     "more steps", "steps=3", "--rollout", "film=false", "measure=true", "--", *SMALL])
    study.main()
    rows = read_results(tmp_path / "results.json").rows
    assert {row["variant"]["rollout"] for row in rows if row["method"] == "forcing"} == {"more steps"}
    assert "dforce train" not in capsys.readouterr().out
    media = {name: {file.name for file in (tmp_path / "rollouts" / name / "media").iterdir()}
             for name in ("forcing-0", "forcing-more-steps-0")}
    assert "rollout.mp4" in media["forcing-0"] and "rollout.mp4" not in media["forcing-more-steps-0"]
