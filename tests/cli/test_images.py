"""`dforce train image` and `dforce sample image`: what they leave behind, going on, and what they refuse."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dforce.cli.main import main
from dforce.data.images import load_images
from dforce.images import draw, load_classifier, load_model
from dforce.images.model import chosen_classes
from dforce.report.rows import read_episodes, read_results
from dforce.runs import training_run as follow
from dforce.train.checkpoint import load_state
from tests.train.test_fit import assert_same

SMALL = ["batch=4", "net.width=8", "net.depth=1", "net.hidden=8", "fit.steps=12", "fit.warmup=2",
         "fit.validate_every=6", "classifier=3", "samples=8", "save_every=5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 20 images of 5x4 pixels: light above, or light below."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for name, rows in (("above", slice(0, 2)), ("below", slice(2, 4))):
        (root / name).mkdir()
        for i in range(20):
            image = rng.integers(0, 60, (4, 5), dtype=np.uint8)
            image[rows] += 190
            Image.fromarray(image).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "image", f"data={data}", f"out={folder}", *SMALL]) == 0
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(data: Path, out: str, *more: str, code: int = 0) -> Path:
    assert main(["train", "image", f"data={data}", f"out={out}", *SMALL, *more]) == code
    return Path(out)


def sampled(out: str, *more: str, code: int = 0) -> Path:
    assert main(["sample", "image", f"out={out}", *more]) == code
    return Path(out)


def rows_of(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["method"], row["metric"]): row for row in read_results(folder / "results.json").rows}


def test_a_training_leaves_model_classifier_results_and_page(run: Path, data: Path) -> None:
    model = load_model(run)
    assert model.classes == ("above", "below") and model.shape == (1, 4, 5) and model.data == str(data)
    assert load_classifier(run).classes == load_classifier(model.checkpoint).classes == model.classes
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "step_00000010", "step_00000012"]
    rows = rows_of(run)
    assert set(rows) == {(method, metric) for method in ("data", "samples")
                         for metric in ("class_accuracy", "diversity", "frechet")}
    assert rows["samples", "class_accuracy"]["n"] == 8 and rows["samples", "frechet"]["n"] == 4
    lines = list(read_episodes(run / "episodes.jsonl"))
    assert len(lines) == 16 and {line["class"] for line in lines} == {"above", "below"}
    seen = [line["class_accuracy"] for line in lines if line["method"] == "samples"]
    assert np.mean(seen) == rows["samples", "class_accuracy"]["value"]
    assert (run / "STATUS").read_text() == "done\n"
    page = (run / "index.html").read_text()
    assert "media/samples.png" in page and "media/loss.png" in page and "Held-out images, and samples" in page
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [6, 12]


def test_the_weights_that_sample_are_the_averaged_ones(run: Path) -> None:
    state, model = load_state(run), load_model(run)
    name = "net.first.weight"
    assert torch.equal(model.denoiser.state_dict()[name], state.ema[f"denoiser.{name}"])
    assert torch.equal(load_model(run, raw=True).denoiser.state_dict()[name], state.model[f"denoiser.{name}"])
    assert not torch.equal(state.ema[f"denoiser.{name}"], state.model[f"denoiser.{name}"])


@pytest.mark.slow
def test_stopped_and_gone_on_with_is_the_undisturbed_run(run: Path, data: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    write = follow.Keeper.write

    def signalling(self: follow.Keeper, log: Any, **due: bool) -> None:
        write(self, log, **due)
        if log.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(follow.Keeper, "write", signalling)
        part = train(data, "part", code=143)
    assert load_state(part).step == 7 and not (part / "results.json").exists()
    before = (part / "classifier" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "image", f"resume={part}"]) == 0
    assert_same(load_state(part), load_state(run))
    assert rows_of(part) == {key: {**row, "task": str(data)} for key, row in rows_of(run).items()}
    assert (part / "classifier" / "model.safetensors").stat().st_mtime_ns == before  # it was there already
    assert len(list(read_episodes(part / "episodes.jsonl"))) == 16
    assert main(["train", "image", f"resume={part}", "fit.steps=14"]) == 0
    assert load_state(part).step == 14 and len(list(read_episodes(part / "episodes.jsonl"))) == 16


def test_what_cannot_be_resumed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other" / "above").mkdir(parents=True)
    (tmp_path / "other" / "below").mkdir()
    for name in ("above", "below"):
        for i in range(20):
            Image.new("L", (5, 4), i).save(tmp_path / "other" / name / f"{i}.png")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert main(["train", "image", f"resume={run}", "data=other", "fit.steps=20"]) == 2
    assert "are not those that" in capsys.readouterr().err
    assert main(["train", f"resume={run}"]) == 2
    assert "no run folder (nor a checkpoint) of dforce train: " in capsys.readouterr().err
    (tmp_path / "maze").mkdir()
    (tmp_path / "maze" / "config.yaml").write_text("fit: {}\ndata: x\nnet: {}\nhorizon: 10\nstack: 1\n")
    assert main(["train", "image", "resume=maze"]) == 2
    assert "of dforce train image: " in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"} == before


@pytest.mark.slow
def test_without_a_classifier_and_without_samples(data: Path) -> None:
    plain = train(data, "plain", "classifier=0", "fit.steps=3")
    assert not (plain / "classifier").exists() and {metric for _, metric in rows_of(plain)} == {"diversity"}
    assert not (train(data, "none", "samples=0", "fit.steps=3") / "results.json").exists()


@pytest.mark.slow
def test_fewer_samples_than_held_out_images_are_of_all_classes(data: Path) -> None:
    lines = read_episodes(train(data, "few", "classifier=0", "samples=4", "fit.steps=1") / "episodes.jsonl")
    assert [line["class"] for line in lines] == 2 * ["above", "above", "below", "below"]


@pytest.mark.slow
def test_fast_dev_run_on_digits(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    assert main(["train", "image", "fast_dev_run=true", "out=digits-run"]) == 0
    assert "dforce sample image checkpoint=digits-run" in capsys.readouterr().out
    assert load_state("digits-run").step == 20
    assert load_model("digits-run").classes == tuple(map(str, range(10)))


@pytest.mark.slow
def test_a_wide_image_under_an_mlp_gets_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(8):
        (tmp_path / "wide" / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (30 * i, 0, 0)).save(tmp_path / "wide" / f"{i % 2}" / f"{i}.png")
    train(tmp_path / "wide", "w", "fit.steps=1", "fast_dev_run=true")
    assert "net=image_unet learns them better" in capsys.readouterr().out
    assert main(["train", "image", f"data={tmp_path / 'wide'}", "out=u", "net=image_unet", "net.width=8", "batch=2",
                 "net.multipliers=[1,1]", "fit.steps=2", "fit.warmup=1", "classifier=1", "samples=2"]) == 0
    assert load_model("u").shape == (3, 20, 20)


def test_samples_are_the_models_own_from_the_same_noise(run: Path) -> None:
    folder = sampled("s", f"checkpoint={{one: {run}, two: {run}/checkpoints/step_00000010}}", "per_class=3", "seed=4",
                     "steps=5", "classes=[below, 0]")
    found = np.load(folder / "samples.npz")
    assert found["models"].tolist() == ["one", "two"] and found["label"].tolist() == [1, 1, 1, 0, 0, 0]
    for number, place in enumerate((run, run / "checkpoints" / "step_00000010")):
        wanted = draw(load_model(place), torch.from_numpy(found["label"]), seed=4, steps=5)
        assert np.array_equal(found["x"][number], wanted[:, 0].numpy())
    rows = rows_of(folder)
    assert ("one", "moved") not in rows and rows["two", "moved"]["value"] > 0
    moved = np.square(np.clip(found["x"][1], -1, 1) - np.clip(found["x"][0], -1, 1)).sum((1, 2, 3)).mean()
    assert rows["two", "moved"]["value"] == pytest.approx(moved, rel=1e-5)
    assert rows["one", "class_accuracy"]["n"] == 6 and rows["one", "jpeg_kb"]["value"] > 0.3
    assert rows["one", "jpeg_kb"]["variant"] == {"steps": 5, "eta": 0.0, "order": 2, "guidance": 1.0}
    assert len(list(read_episodes(folder / "episodes.jsonl"))) == 12
    assert "media/samples.png" in (folder / "index.html").read_text()


def test_one_model_twice_draws_the_same(run: Path) -> None:
    settings = ["per_class=2", "steps=3", "guidance=2.0", "eta=1.0", "order=1"]
    folder = sampled("s", f"checkpoint={{a: {run}, b: {run}}}", *settings)
    found = np.load(folder / "samples.npz")["x"]
    assert np.array_equal(found[0], found[1]) and rows_of(folder)["b", "moved"]["value"] == 0
    assert rows_of(folder)["a", "diversity"]["low"] is None  # two of a class have no interval
    other = np.load(sampled("t", f"checkpoint={run}", *settings, "seed=1") / "samples.npz")["x"][0]
    assert not any(np.allclose(other[i], found[0, j], atol=1e-4) for i in range(4) for j in range(4))


def test_the_shipped_digits_beside_a_run_of_ones_own(capsys: pytest.CaptureFixture[str], run: Path) -> None:
    folder = sampled("s", "checkpoint=digits", "fast_dev_run=true", "classes=[1, 7]")
    assert rows_of(folder)["digits", "class_accuracy"]["n"] == 4
    sampled("t", f"checkpoint=[digits, {run}]", code=2)
    assert "digits draws 10 classes in (1, 8, 8), run draws 2 in (1, 4, 5)" in capsys.readouterr().err


@pytest.mark.parametrize("words, message", [
    (["checkpoint=[digits, digits]"], "a checkpoint is given twice"),
    (["checkpoint=null"], "checkpoint is needed"),
    (["checkpoint=numerals"], "neither a checkpoint, nor a run folder"),
    (["checkpoint=maze2d-umaze"], "no image model of named classes"),
    (["classes=[eleven]"], "no class 'eleven'"),
    (["classes=[10]"], "no class 10"),
    (["classes=[1, 1]"], "names one twice"),
    (["classes=[]"], "classes is empty"),
    (["per_class=0"], "per_class must be at least 1"),
    (["steps=0"], "steps must be at least 1"),
    (["classifier=nowhere"], "no classifier at 'nowhere'"),
    (["per_clas=3"], "did you mean 'per_class'"),
])
def test_what_sampling_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    sampled("s", "checkpoint=digits", *words, code=2)
    assert message in capsys.readouterr().err


def test_a_classifier_of_other_images_is_refused_or_passed_over(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled("s", f"checkpoint={run}", "classifier=digits", "fast_dev_run=true", code=2)
    assert "the classifier digits is for 10 classes in (1, 8, 8)" in capsys.readouterr().err
    bare = sampled("t", "checkpoint=digits", "classifier=false", "fast_dev_run=true")
    assert {metric for _, metric in rows_of(bare)} == {"jpeg_kb", "diversity"}


def test_kinds_of_sampling_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample"]) == 2
    assert "dforce sample image" in capsys.readouterr().err
    assert main(["sample", "imag"]) == 2
    assert "dforce sample has no kind 'imag'; did you mean 'image'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_help_names_the_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "image", "--help"]) == 0
    text = capsys.readouterr().out
    assert "net=image_mlp|image_unet|" in text and "(default image_mlp)" in text and "schedule=cosine" in text


def test_classes_by_name_before_number() -> None:
    assert chosen_classes(["b", 0], ("a", "b")) == [1, 0]
    assert chosen_classes([7, "3"], ("3", "7")) == [1, 0]
    assert chosen_classes(1, ("a", "b")) == [1] and chosen_classes(None, ("a", "b")) == [0, 1]


def test_training_images_are_all_but_the_held_out(data: Path) -> None:
    assert len(load_images(data).x) == 32 and len(load_images(data, split="test").x) == 8
