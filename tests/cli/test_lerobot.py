"""`dforce data lerobot`, `dforce report episode` and `dforce imitate` on the data of other robot libraries."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dforce.cli.main import main
from dforce.data import load_episodes
from dforce.data.minari import save_episodes
from dforce.report.rows import read_results
from dforce.train.checkpoint import load
from tests.cue import demonstrations
from tests.data.test_lerobot import by_hand_v3
from tests.data.test_lerobot_pictures import filmed_v3
from tests.data.test_robomimic import robomimic
from tests.page_rules import check_page

DATA = "dforce/cue-v0"
SHORT = ["chunk=2", "net.width=8", "batch=4", "fit.steps=2", "fit.warmup=1", "fit.validate_every=2", "imitation.hold=0"]


@pytest.fixture(autouse=True)
def _places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))
    torch.set_num_threads(1)


def test_a_minari_data_set_becomes_one_of_lerobot_which_is_shown_and_trains(tmp_path, capsys):
    plain = demonstrations(8)
    plain = replace(plain, about={**plain.about, "dt": 0.1})
    save_episodes(DATA, plain)
    assert main(["data", "lerobot", f"data={DATA}", "to=set", "out=written"]) == 0, capsys.readouterr().err
    assert "dforce imitate data=set" in capsys.readouterr().out
    back = load_episodes("set")
    assert np.array_equal(back.observations, plain.observations) and back.about["dataset"] == DATA
    check_page(tmp_path / "written" / "index.html")
    assert main(["imitate", "data=set", *SHORT, "held_out=0.2", "out=trained"]) == 0, capsys.readouterr().err
    assert load("trained").layout["dataset"] == DATA
    assert main(["report", "episode", "data=trained", "number=7", "out=page"]) == 0, capsys.readouterr().err
    results = read_results(tmp_path / "page" / "results.json")
    assert results.header["summary"].startswith("Episode 7 of the 8 of dforce/cue-v0: ")
    check_page(tmp_path / "page" / "index.html")
    assert main(["data", "lerobot", f"data={DATA}", "to=set"]) == 2
    assert "set exists: choose another folder" in capsys.readouterr().err


@pytest.mark.slow
def test_films_of_two_cameras_at_thirty_frames_a_second_are_shown_and_train(tmp_path, capsys):
    filmed_v3(tmp_path / "set")
    assert main(["report", "episode", "data=set", "number=1", "infos=[next.done]", "out=page"]) == 0
    said = capsys.readouterr().out
    assert 'Episode 1 of the 4 of set: 3 steps in 0.1 seconds; task: "bring it back"; sum of rewards 1.5' in said
    check_page(tmp_path / "page" / "index.html")
    captions = json.loads((tmp_path / "page/media/captions.json").read_text())
    assert list(captions) == ["cameras.png", "film.mp4", "traces.png"]
    small = [f"pictures.{key}" for key in ("steps=2", "side=16", "width=3", "channels=4", "batch=4")]
    assert main(["imitate", "data=set", *SHORT, *small, "held_out=0", "out=trained"]) == 0, capsys.readouterr().err
    tokens = load("trained").layout["tokens"]["parts"]
    assert list(tokens) == ["top", "wrist", "state", "environment_state"] and tokens["top"] == tokens["wrist"]


def test_subsets_train_alone(tmp_path, capsys):
    by_hand_v3(tmp_path / "set")
    low = robomimic(tmp_path / "low.hdf5", images=False)
    for words in (["data=set", "subset=train"], [f"data={low}", "subset=train"]):
        out = f"out={Path(words[0]).stem}"
        assert main(["imitate", *words, *SHORT, "held_out=0", out]) == 0, capsys.readouterr().err
    assert load("low").layout["dt"] == 1 / 20 and load("data=set").layout["dt"] == 1 / 30


@pytest.mark.parametrize(("words", "message"), [
    (["report", "episode", "data=set", "number=4"], "set has no episode 4: they are numbered from 0 to 3"),
    (["report", "episode", "data=set", "infos=[joy]"], "has no feature 'joy' of numbers, it has observation.state"),
    (["report", "episode", "data=nowhere"], "no dataset 'nowhere'"),
    (["report", "episode", "data=run"], "run is a run that was given no data set"),
    (["imitate", "data=set", "subset=val"], "no split 'val', it has train, test"),
    (["imitate", "data=set/meta"], "is of the LeRobot data set .*set: give that folder"),
    (["data", "lerobot", "data=set", "to=other", "fps=0"], "fps=0|fps must be"),
    (["data", "lerobot", "data=set", "to=other", "pictures=raw"], "pictures must be"),
])
def test_mistakes_get_one_line(tmp_path, capsys, words, message):
    by_hand_v3(tmp_path / "set")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: null\n")
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and re.search(message, lines[0]), lines
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob(".*"))
