"""The verbs `demo` and `plan`: the whole road once, small, and what they say to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dforce.cli.main import main
from dforce.report.rows import read_results
from dforce.runs.checkpoint_defaults import defaults
from dforce.train.checkpoint import load, load_state, save


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small demo."""
    place = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(place / "minari"))
        small = ["train.net.width=32", "train.batch=16"]
        assert main(["demo", "fast_dev_run=true", f"out={place / 'run'}", *small]) == 0
    return place / "run"


@pytest.mark.slow
def test_the_demo_leaves_everything_behind(demo: Path) -> None:
    assert (demo / "STATUS").read_text() == "done\n"
    pictures = {file.stem for file in (demo / "media").iterdir()}
    assert {"plan", "grid", "animation", "denoising", "schedule", "loss", "score", "coverage"} <= pictures
    page = (demo / "index.html").read_text()
    assert "done" in page and "media/plan.png" in page
    rows = read_results(demo / "results.json").rows
    methods, main = {row["method"] for row in rows}, "best of n"
    assert {"random", "straight", "controller", "retrieval", "unguided", main, f"{main} - retrieval"} <= methods
    assert {row["variant"].get("starts", "all") for row in rows} == {"all", "blocked"}
    executors = {(row["variant"].get("hold"), row["variant"].get("pace")) for row in rows if row["method"] == main}
    assert executors == {(True, 1.0), (False, 1.0), (True, 1.5)}
    lines = [json.loads(line) for line in (demo / "episodes.jsonl").read_text().splitlines()]
    straight = [line["success"] for line in lines if line["method"] == "straight" and line["blocked"]]
    assert straight and not any(straight)                                      # that is what blocked means


def test_plan_drives_a_checkpoint_and_is_reproducible(demo: Path, tmp_path: Path) -> None:
    command = ["plan", f"checkpoint={demo}", "fast_dev_run=true", "precision=fp32", "pictures=0"]
    scores = []
    for name in ("a", "b"):
        assert main([*command, f"out={tmp_path / name}"]) == 0
        rows = read_results(tmp_path / name / "results.json").rows
        scores.append([row["value"] for row in rows
                       if row["method"] == "best of n" and row["metric"] != "plan_seconds"])
    assert scores[0] and scores[0] == scores[1]


@pytest.mark.parametrize("override, told", [
    ("checkpoint=nowhere", "neither a checkpoint, nor a run folder"),
    ("maze=colosseum", "umaze"),
    ("planner.stpes=3", "did you mean 'steps'"),
    ("planner.steps=2000", "steps must lie in 1..1000"),
    ("executor.gain_p=-1", "gain_p must be at least 0"),
    ("episodes=many", "episodes must be a whole number"),
])
def test_mistakes_are_answered_in_one_message(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                              override: str, told: str) -> None:
    command = ["plan", f"checkpoint={demo}", "fast_dev_run=true", f"out={tmp_path / 'run'}", override]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert told in said and "Traceback" not in said


def test_a_checkpoint_that_is_no_planner_is_refused(demo: Path, tmp_path: Path,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    bundle, state = load(demo), load_state(demo)
    save(tmp_path / "other", state, config=bundle.config, layout={**bundle.layout, "env": "pendulum"},
         normalizer=bundle.normalizer)
    assert main(["plan", f"checkpoint={tmp_path / 'other'}", f"out={tmp_path / 'run'}"]) == 2
    assert "was trained on pendulum, not on a maze" in capsys.readouterr().err


def test_a_flipped_byte_in_the_checkpoint_is_noticed(demo: Path, tmp_path: Path,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    bundle, state = load(demo), load_state(demo)
    folder = save(tmp_path / "flipped", state, config=bundle.config, layout=bundle.layout, normalizer=bundle.normalizer)
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main(["plan", f"checkpoint={folder}", f"out={tmp_path / 'run'}"]) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_planning_in_parts_covers_all_starts_with_noise_of_their_own(demo: Path) -> None:
    import numpy as np

    from dforce.planning.planner import DiffusionPlanner

    bundle = load(demo)
    assert bundle.normalizer is not None
    for parameter in bundle.denoiser.parameters():
        parameter.requires_grad_(False)
    planner = DiffusionPlanner(bundle.denoiser, bundle.schedule, bundle.normalizer, bundle.layout, steps=4, episodes=2,
                               scale=0.0)
    start, goal = np.tile([1.0, 1.0, 0.0, 0.0], (4, 1)), np.ones((4, 2))
    plan = planner(start, goal, 295, np.random.default_rng(0))
    assert plan.states.shape == (4, 300, 4) and plan.actions.shape == (4, 300, 2)   # whole tokens cover the horizon
    distances = torch.cdist(*[torch.from_numpy(plan.states.reshape(4, -1))] * 2)
    assert (distances + torch.eye(4) > 1e-3).all()


def test_the_settings_of_a_checkpoint_hold_unless_others_are_given(capsys: pytest.CaptureFixture[str]) -> None:
    usual = {"planner": {"_target_": "x.Planner", "delay": 1, "scale": 0.5, "draws": 8}, "clamp": 1.0}
    settings = {"planner.delay": 5, "planner.scale": 0.05, "clamp": None}
    assert defaults(usual, {}, given=[]) == usual
    merged = defaults(usual, settings, given=["episodes"])
    assert merged == {"planner": {**usual["planner"], "delay": 5, "scale": 0.05}, "clamp": None}
    assert "planner.delay=5 planner.scale=0.05 clamp=None" in capsys.readouterr().out
    assert defaults(usual, settings, given=["planner.delay"])["planner"] == {**usual["planner"], "scale": 0.05}
    assert defaults(usual, settings, given=["planner"], unless=["planner"]) == usual
    assert usual["planner"]["delay"] == 1


def test_the_shipped_planner_of_the_medium_maze_brings_its_settings() -> None:
    assert load("maze2d-medium").config["planner"] == {"delay": 1, "scale": 0.03, "draws": 1}
