"""`dforce train reward`: what it writes, what it says of data and settings that do not fit, and its reward again."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import numpy as np
import pytest
import torch
import yaml

from dforce.align import BradleyTerry, Pairs, Ratings, ask_reward, load_reward, write_pairs, write_ratings
from dforce.cli import manual
from dforce.cli.main import main
from dforce.report.plots.monitor import margins_plot, ratings_plot
from dforce.report.rows import read_results

FEW = ["steps=30", "batch=40", "width=8", "depth=1"]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """60 images of two classes: the brighter one of a pair wins; ratings are brightness in tenths."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(120, 1, 1, 4, 4, generator=generator)
    bright = x.mean((1, 2, 3, 4))
    better = (bright[::2] > bright[1::2]).view(-1, 1, 1, 1, 1)
    pairs = Pairs(torch.where(better, x[::2], x[1::2]), torch.where(better, x[1::2], x[::2]),
                  {"static": {"class": torch.arange(60) % 2}}, torch.ones(60))
    (tmp_path / "sets").mkdir()
    write_pairs(tmp_path / "sets" / "pairs.npz", pairs)
    write_ratings(tmp_path / "sets" / "ratings.npz", Ratings(x, (bright * 10).round()))
    return x, bright


def complaint(capsys, *words):
    assert main(["train", "reward", *words]) == 2
    return capsys.readouterr().err


@pytest.mark.slow
def test_pairs_become_a_reward_with_its_page(data, capsys) -> None:
    x, bright = data
    assert main(["train", "reward", "data=sets/pairs.npz", "out=run", "classes=[a,b]", *FEW, "lr=1e-2"]) == 0
    rows = {row["metric"]: row for row in read_results("run/results.json").rows}
    told = rows["pair_accuracy"]
    assert told["n"] == 12 and told["low"] <= told["value"] <= told["high"] and told["value"] > 0.6
    lines = [json.loads(line) for line in open("run/episodes.jsonl")]
    assert len(lines) == 12 and np.mean([line["margin"] > 0 for line in lines]) == pytest.approx(told["value"])
    assert rows["pair_loss"]["value"] == pytest.approx(np.mean([np.logaddexp(0, -line["margin"]) for line in lines]))
    assert rows["pair_accuracy of those learnt from"]["n"] == 48
    page = open("run/index.html").read()
    assert "pair_accuracy" in page and "margins.png" in page and "loss.png" in page
    reward = load_reward("run")
    assert isinstance(reward, BradleyTerry) and reward.net.classes == ("a", "b")
    assert ask_reward(reward, x, ["a", "b"] * 60).shape == (120,)
    assert json.load(open("run/reward/reward.json"))["about"]["pair_accuracy"] == told["value"]
    capsys.readouterr()
    assert main(["train", "reward", "data=sets/ratings.npz", "out=again", "encoder=run", "steps=20"]) == 0
    assert load_reward("again").head.size == 16  # on the features of the first, which are kept with it


@pytest.mark.slow
def test_ratings_become_a_reward_with_its_rank_correlation(data, capsys) -> None:
    x, bright = data
    assert main(["train", "reward", "data=sets/ratings.npz", "out=run", "steps=150"]) == 0
    rows = read_results("run/results.json").rows
    found = {(row["method"], row["metric"]): row for row in rows}
    rank = found["rating on flat", "rank_correlation"]
    assert rank["n"] == 24 and 0.6 < rank["low"] <= rank["value"] <= rank["high"] <= 1
    assert found["rating on flat", "error"]["value"] < found["mean of the ratings", "error"]["value"]
    stats = pytest.importorskip("scipy.stats")
    lines = [json.loads(line) for line in open("run/episodes.jsonl")]
    both = [line["predicted"] for line in lines], [line["rated"] for line in lines]
    assert rank["value"] == pytest.approx(stats.spearmanr(*both).statistic)
    reward = load_reward("run")
    assert np.corrcoef(reward(x).detach(), bright)[0, 1] > 0.9
    assert "ratings.png" in open("run/index.html").read()


@pytest.mark.slow
def test_settings_and_data_that_do_not_fit_are_told(data, capsys) -> None:
    x, _ = data
    assert "data is needed" in complaint(capsys)
    assert "name one of them" in complaint(capsys, "data=sets")
    pairs, ratings = "data=sets/pairs.npz", "data=sets/ratings.npz"
    assert "encoder, hidden does nothing for pairs" in complaint(capsys, pairs, "encoder=flat", "hidden=3")
    assert "width does nothing for ratings" in complaint(capsys, ratings, "width=8")
    assert "No such file" in complaint(capsys, "data=nowhere.npz")
    assert "has class 1, and classes names only 1" in complaint(capsys, pairs, "classes=[a]")
    np.savez("other.npz", x=x)
    assert "must hold arrays 'win' and 'lose'" in complaint(capsys, "data=other.npz")
    assert "leaves 0 of 60 groups" in complaint(capsys, pairs, "held_out=0")
    assert "no classifier at 'nosuch'" in complaint(capsys, ratings, "encoder=nosuch")
    np.savez("more.npz", win=x[:4], lose=x[4:8], start=np.zeros((4, 2)))
    assert "arrays ['start'] that mean nothing here" in complaint(capsys, "data=more.npz")
    np.savez("empty.npz", win=x[:0], lose=x[:0])
    assert "holds no preference pairs" in complaint(capsys, "data=empty.npz")
    np.savez("half.npz", win=x[:20], lose=x[20:40], start=np.zeros((20, 2)), **{"class": np.full(20, 0.5)})
    assert "class must be one whole number" in complaint(capsys, "data=half.npz", "ignore=[start]")
    assert main(["train", "reward", "data=half.npz", "ignore=[start,class]", "fast_dev_run=true", "out=few"]) == 0
    assert open("few/STATUS").read() == "done\n"


def test_pictures_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="no held-out pair"):
        margins_plot([])
    with pytest.raises(ValueError, match="not finite"):
        margins_plot([1.0, float("nan")])
    with pytest.raises(ValueError, match="as rated"):
        ratings_plot([1.0], [1.0, 2.0])


def test_no_folder_of_kinds_takes_a_key_away() -> None:
    """Hydra takes an override name=... for a choice in the group `name` wherever there is such a folder."""
    configs = files("dforce.configs")
    folders = {f.name for f in configs.iterdir() if f.is_dir() and f.name[0] not in "._"}
    for verb, kinds in manual.kinds().items():
        for name in (verb if kind == verb else f"{verb}/{kind}" for kind in kinds):
            text = manual.text_of(name)
            assert text, name
            groups = set(re.findall(r"^\s*- /?(\w+)(?:@\w+)?:?", text, re.MULTILINE))
            assert not (set(yaml.safe_load(text)) - groups) & folders, name
