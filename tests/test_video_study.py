"""The drift table: equal arithmetic for all methods, rows pooled over seeds, and the whole road once, small."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from dforce.report.results import read_results

FILE = Path(__file__).resolve().parent.parent / "scripts" / "video" / "drift.py"
SMALL = ["net.width=8", "net.latent=8", "batch=4", "frames=8", "fit.validate_every=4", "samples=0"]


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("drift_study", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["drift_study"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def few_balls(monkeypatch):
    monkeypatch.setattr("dforce.data.clips_select.BALLS", {"train": 24, "val": 12})


def row(value, metric="frechet", method="forcing", n=4):
    return {"task": "balls", "method": method, "variant": {"frames": "0-100"}, "metric": metric, "value": value,
            "low": value - 1, "high": value + 1, "n": n, "seeds": 1, "unit": "", "higher_is_better": False}


def test_seeds_are_pooled_with_a_t_interval(study):
    from scipy.stats import ttest_1samp

    values = [1.0, 2.0, 4.0]
    pooled = list(study.pooled([[row(v), row(9.0, metric="other")] for v in values]))
    assert len(pooled) == 2 and pooled[1]["value"] == 9 and pooled[0]["seeds"] == 3 and pooled[0]["n"] == 12
    interval = ttest_1samp(values, 0).confidence_interval()
    assert pooled[0]["value"] == pytest.approx(np.mean(values))
    assert (pooled[0]["low"], pooled[0]["high"]) == pytest.approx((interval.low, interval.high))
    alone = list(study.pooled([[row(1.0)]]))
    assert alone == [row(1.0)]                                                 # a seed alone keeps its own interval


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
