"""Contents of a checkpoint that were changed and sealed anew: whatever no training writes is refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from dforce.train.checkpoint import CheckpointError, load, load_state
from tests.train.test_checkpoint import edit, reseal

OLD = Path(__file__).parent / "checkpoint_of_0_1"
NAN = float("nan")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "step_00000002"))


def refused(folder: Path, message: str) -> None:
    """By whoever resumes or by whoever uses it, before it is built; never by an error of a library."""
    reseal(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_state(folder)
        load(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def changed(folder: Path, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / file
    if file.endswith("safetensors"):
        tensors = load_file(path)
        save_file(change(tensors) or tensors, path)
        return
    content = yaml.safe_load(path.read_text())
    new = change(content)
    path.write_text(json.dumps(content if new is None else new))


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(key, value(content[key]) if callable(value) else value)


def names(prefix: str) -> str:
    return next(name for name in load_file(OLD / "model.safetensors") if name.startswith(prefix))


FIRST = names("denoiser.net.")
TENSORS = [
    (f"ema.{FIRST}", lambda v: v.flatten()[:1], "has shape .1. and format"),
    (f"ema.{FIRST}", lambda v: v.double(), "format torch.float64"),
    (FIRST, lambda v: v.to(torch.int8), "int8|float32"), (FIRST, lambda v: v * NAN, "not finite"),
    (f"ema.{FIRST}", lambda v: v + float("inf"), "not finite"), (FIRST, lambda v: v[:1], "has shape|differs in"),
    ("normalizer.mean", lambda v: v[:3].clone(), "normaliser of 3 and 6 columns does not fit tokens of 60"),
    ("normalizer.std", lambda v: v * 0, "finite and positive"), ("normalizer.std", lambda v: v * NAN, "not finite"),
    ("normalizer.other", lambda v: torch.ones(6), "normalizer.other.*not the mean and std"),
    ("ema.denoiser.net.other", lambda v: torch.ones(6), "belongs to no weights"),
]


@pytest.mark.parametrize(("name", "value", "message"), TENSORS)
def test_wrong_tensors(folder: Path, name: str, value: Callable, message: str) -> None:
    changed(folder, "model.safetensors", lambda content: content.__setitem__(name, value(content.get(name))))
    refused(folder, message)


@pytest.mark.parametrize(("moment", "value", "message"), [
    ("exp_avg", lambda v: v.flatten()[:1].clone(), "has shape .1."), ("exp_avg_sq", lambda v: v - 9, "below 0"),
    ("exp_avg_sq", lambda v: v * NAN, "not finite"), ("step", lambda v: v - 99, "format|shape"),
    ("exp_avg", None, "exp_avg_sq, step of"), ("exp_avg", lambda v: v.half(), "format torch.float16")])
def test_wrong_moments(folder: Path, moment: str, value: Callable | None, message: str) -> None:
    key = next(key for key in load_file(OLD / "optim.safetensors") if key.endswith(f".{moment}"))
    def change(content: dict[str, Any]) -> None:
        if (old := content.pop(key)) is not None and value is not None:
            content[key] = value(old)

    changed(folder, "optim.safetensors", change)
    refused(folder, message)


@pytest.mark.parametrize("missing", [FIRST, "normalizer.mean"])
def test_a_tensor_that_is_missing(folder: Path, missing: str) -> None:
    changed(folder, "model.safetensors", lambda content: {key: content[key] for key in content if key != missing})
    refused(folder, "lacks|belongs to no weights|not the mean and std")


JSON = [("state.json", put("step", value), "step") for value in (NAN, "2", -1, 2.5, None, True, [2], 7)] + [
    ("state.json", put("record", []), "record in state.json must be"), ("state.json", put("extra", 1), "extra"),
    ("state.json", put("record", {"precision": "int8"}), "precision"),
    ("state.json", lambda c: c.pop("step"), "mapping"),
    ("layout.json", put("event_shape", "60"), "event_shape"), ("layout.json", put("event_shape", [-60]), "event_shape"),
    ("layout.json", put("event_shape", [10**9]), "event_shape"),
    ("layout.json", put("event_shape", []), "tokens of 1"),
    ("layout.json", put("event_shape", [66]), "tokens of 66"), ("layout.json", put("stack", 0), "stack must be"),
    ("layout.json", put("observation", [2, 60]), "does not lie within"),
    ("layout.json", put("action", [[0], 2]), "action"),
    ("layout.json", put("static", ["start"]), "static"), ("layout.json", put("static", {"start": -4}), "static"),
    ("layout.json", put("static", {"start": 40}), "another model"), ("layout.json", put("rows", 7), "rows"),
    ("layout.json", lambda c: {key: c[key] for key in c if key != "horizon"}, "no horizon"),
    ("config.yaml", put("predict", "velocity"), "predict"), ("config.yaml", put("predict", 3), "predict"),
    ("config.yaml", put("net", "recurrent"), "net"), ("config.yaml", put("planner", 3), "planner"),
    ("config.yaml", lambda c: {key: c[key] for key in c if key != "schedule"}, "no schedule"),
    ("config.yaml", lambda c: c["net"].update(width=65536), "another model"),
    ("config.yaml", lambda c: c["net"].update(width=10**7), "width must be at least 1 and at most 65,536"),
    ("config.yaml", lambda c: c["net"].update(width=-4), "width must be"),
    ("config.yaml", lambda c: c["schedule"].update(levels=10**10), "levels must be"),
    *((file, lambda _, value=value: value, "mapping") for file in ("state.json", "layout.json", "config.yaml")
      for value in ([], [1], 3, "text"))]


@pytest.mark.parametrize(("file", "change", "message"), JSON)
def test_wrong_json(folder: Path, file: str, change: Callable, message: str) -> None:
    changed(folder, file, change)
    refused(folder, message)


@pytest.mark.parametrize("content", [b"", b"null", b"[[[", b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("file", ["state.json", "layout.json", "config.yaml", "model.safetensors"])
def test_files_of_nothing_and_of_noise(folder: Path, file: str, content: bytes) -> None:
    (folder / file).write_bytes(content)
    refused(folder, "cannot use the checkpoint")


@pytest.mark.parametrize("file", ["state.json", "layout.json", "config.yaml", "model.safetensors"])
def test_a_file_that_the_manifest_does_not_vouch_for(folder: Path, file: str) -> None:
    files = json.loads((folder / "MANIFEST.json").read_text())["files"]
    files.pop(file)
    edit(folder, files=files)
    with pytest.raises(CheckpointError, match=f"{file} is missing in MANIFEST.json"):
        load(folder)


@pytest.mark.parametrize("files", [[], 3, {"state.json": 3}, {"state.json": {"bytes": None, "sha256": 1}}])
def test_a_manifest_of_another_kind(folder: Path, files: Any) -> None:
    edit(folder, files=files)
    with pytest.raises(CheckpointError, match="is damaged"):
        load(folder)
