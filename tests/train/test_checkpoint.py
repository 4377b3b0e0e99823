"""Checkpoints: a round trip loses nothing, another model is told apart, and no code is run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from dforce.config.moved import _say
from dforce.core.files import sha256
from dforce.data.batch import Batch
from dforce.data.normalize import Affine
from dforce.train import checkpoint
from dforce.train.atomic_folder import _digest, _dump
from dforce.train.checkpoint import (
    CheckpointError,
    build_denoiser,
    find,
    keep_last,
    latest,
    load,
    load_state,
    save,
    step_folder,
)
from dforce.train.fit import TrainingState, fit
from dforce.train.objectives import ForcingObjective
from tests.train.test_distributed import environment
from tests.train.test_fit import PLAIN, assert_same

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {"net": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 8},
          "schedule": {"_target_": "dforce.core.schedule.linear", "levels": 20}, "predict": "v", "lr": 1e-5}
LAYOUT = {"event_shape": [6], "static": {"start": 4}, "stack": 1, "env": "maze2d-umaze"}
FILES = {"model.safetensors", "optim.safetensors", "state.json", "config.yaml", "layout.json", "README.md",
         "MANIFEST.json"}


def objective() -> ForcingObjective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = build_denoiser(CONFIG, LAYOUT)
    return ForcingObjective(denoiser, denoiser.schedule)


def batch_at(step: int) -> Batch:
    draw = torch.Generator().manual_seed(step)
    return Batch(torch.randn(4, 5, 6, generator=draw), torch.ones(4, 5).bool(),
                 {"static": {"start": torch.randn(4, 4, generator=draw)}}, torch.ones(4).bool())


@cache
def ten_steps() -> tuple[ForcingObjective, TrainingState]:
    """An objective after 10 steps, and its state."""
    model = objective()
    *_, log = fit(model, batch_at, **PLAIN, steps=10)
    return model, log.training.state()


def save_best(folder: Path) -> Path:
    normalizer = Affine(torch.arange(6.0), torch.full((6,), 2.0))
    extra = {"val": 0.5}
    return save(folder / "best", ten_steps()[1], config=CONFIG, layout=LAYOUT, normalizer=normalizer, extra=extra)


@pytest.fixture
def trained():
    return ten_steps()


@pytest.fixture
def saved(tmp_path) -> Path:
    return save_best(tmp_path)


def test_round_trip(trained, saved):
    model, state = trained
    assert {file.name for file in saved.iterdir()} == FILES and os.listdir(saved.parent) == ["best"]
    assert_same(load_state(saved), state)
    assert load_state(saved).record == state.record
    bundle, raw = load(saved), load(saved, raw=True)
    for name, value in raw.denoiser.state_dict().items():
        assert torch.equal(value, model.denoiser.state_dict()[name])
    for name, value in bundle.denoiser.named_parameters():
        assert torch.equal(value, state.ema[f"denoiser.{name}"])
    assert (bundle.config, bundle.layout, bundle.step) == (CONFIG, LAYOUT, 10)
    assert torch.equal(bundle.normalizer.mean, torch.arange(6.0)) and not bundle.denoiser.training
    assert bundle.schedule.alpha.dtype == torch.float64 and torch.equal(bundle.schedule.alpha, model.schedule.alpha)
    x, level, cond = batch_at(0).x, torch.full((4, 5), 7), batch_at(0).cond
    with torch.no_grad():
        ours, theirs = (d(x, level, d.init_state(4, cond), cond)[0] for d in (raw.denoiser, model.denoiser))
    assert torch.equal(ours, theirs)


GO_ON = """
import sys
from tests.train.test_checkpoint import CONFIG, LAYOUT, PLAIN, batch_at, objective
from dforce.train.checkpoint import load_state, save
from dforce.train.fit import TrainingState, fit
*_, log = fit(objective(), batch_at, **PLAIN, steps=20, resume=load_state(sys.argv[1]))
save(sys.argv[2], log.training.state(), config=CONFIG, layout=LAYOUT)
"""


@pytest.mark.slow  # within a process: tests/train/test_fit.py
def test_a_fresh_process_goes_on_bit_for_bit(tmp_path):
    for log in fit(objective(), batch_at, **PLAIN, steps=20):
        if log.step == 10:
            save(tmp_path / "ten", log.training.state(), config=CONFIG, layout=LAYOUT)
    done = subprocess.run([sys.executable, "-c", GO_ON, tmp_path / "ten", tmp_path / "twenty"], cwd=ROOT,
                          env=environment(OMP_NUM_THREADS=str(torch.get_num_threads())), timeout=100)
    assert done.returncode == 0
    assert_same(load_state(tmp_path / "twenty"), log.training.state())


OLD = Path(__file__).with_name("checkpoint_of_0_1")  # written when the package had no rooms: `dforce.schedule.linear`

GIVEN = [[[-0.2261458, 0.1887163, 0.2130624], [-0.2168601, 0.1791064, 0.1933776], [-0.2218083, 0.1775471, 0.1861839]],
         [[-0.2203644, 0.1635283, 0.2088104], [-0.2194687, 0.1553950, 0.1916732], [-0.2252132, 0.1531685, 0.1874480]]]


def test_a_checkpoint_that_names_old_places_is_what_it_was(capsys):
    """Loaded, its network gives the numbers it gave to the version that wrote it; old names are told on stderr."""
    _say.cache_clear()
    bundle = load(OLD)
    message = "note: dforce.schedule.linear is dforce.core.schedule.linear now; please write the new name"
    assert capsys.readouterr().err.count(message) == 1
    assert bundle.config["schedule"]["_target_"] == "dforce.core.schedule.linear"
    assert bundle.config["objective"]["_target_"] == "dforce.train.objectives.ForcingObjective"
    assert "_target_: dforce.loss.ForcingObjective" in (OLD / "config.yaml").read_text()  # the file stays as it was
    assert (bundle.step, bundle.layout["env"], bundle.schedule.levels) == (2, "maze2d-umaze", 1000)
    x = torch.linspace(-1, 1, 2 * 3 * 60).view(2, 3, 60)
    cond = {"static": {"start": torch.linspace(0, 1, 8).view(2, 4)}}
    with torch.no_grad():
        x0, _ = bundle.denoiser(x, torch.tensor([[10, 500, 1000]] * 2), bundle.denoiser.init_state(2, cond), cond)
    torch.testing.assert_close(x0[:, :, ::29], torch.tensor(GIVEN), rtol=0, atol=1e-6)
    assert load_state(OLD).record["seed"] == 0 and load_state(OLD).optim


def edit(folder: Path, **about) -> None:
    """A manifest written by someone else, sealed as it should be."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["digest"]
    manifest |= about
    (folder / "MANIFEST.json").write_bytes(_dump(manifest, _digest(manifest)))


def reseal(folder: Path) -> None:
    """The manifest says what the files are now."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    edit(folder, files={name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
                        for name in manifest["files"]})


def test_unknown_format_and_migration(saved, monkeypatch):
    edit(saved, format=2)
    with pytest.raises(CheckpointError, match="format 2, this is dforce .* with format 1: install a newer dforce"):
        load(saved)
    files = json.loads((saved / "MANIFEST.json").read_text())["files"]
    edit(saved, format=1, files={**files, "../best": {"bytes": 1, "sha256": ""}})
    with pytest.raises(CheckpointError, match="is missing"):
        load(saved)
    path = save(saved.parent / "old", load_state_of(), config={**CONFIG, "predict": "velocity"}, layout=LAYOUT)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="format 1"):
        load(path)
    monkeypatch.setitem(checkpoint.MIGRATIONS, 1, lambda p: p._replace(config={**p.config, "predict": "v"}))
    assert load(path).denoiser.predict == "v"


def load_state_of():
    return next(iter(fit(objective(), batch_at, **PLAIN, steps=1))).training.state()


def test_a_checkpoint_of_another_model(trained, tmp_path):
    state = trained[1]
    wide = save(tmp_path / "wide", state, config={**CONFIG, "net": {**CONFIG["net"], "width": 16}}, layout=LAYOUT)
    with pytest.raises(CheckpointError, match=r"another model: it differs in net.null \[1, 8\] instead of \[1, 16\]"):
        load(wide)
    deep = save(tmp_path / "deep", state, config={**CONFIG, "net": {**CONFIG["net"], "depth": 2}}, layout=LAYOUT)
    with pytest.raises(CheckpointError, match="lacks net.core.weight_ih_l1"):
        load(deep)
    unset = save(tmp_path / "unset", state, config={"net": CONFIG["net"]}, layout=LAYOUT)
    with pytest.raises(CheckpointError, match="config.yaml has no predict, schedule"):
        load(unset)
    no_start = save(tmp_path / "no_start", state, config=CONFIG, layout={"event_shape": [6]})
    with pytest.raises(CheckpointError, match="has, unknown here, net.start"):
        load(no_start)


@pytest.mark.parametrize("target", ["os.system", "dforce.runs.folder.os.system", "dforce.nets.recurrent.torch.load",
                                    "builtins.eval", "subprocess.Popen"])
def test_foreign_targets_are_refused(trained, tmp_path, target):
    folder = save(tmp_path / "evil", trained[1], config={**CONFIG, "net": {"_target_": target}}, layout=LAYOUT)
    with pytest.raises(CheckpointError, match="_target_"):
        load(folder)


def test_yaml_runs_no_code(saved, tmp_path):
    text = "net: !!python/object/apply:os.mkdir ['" + str(tmp_path / "pwned") + "']\n"
    (saved / "config.yaml").write_text(text)
    reseal(saved)
    with pytest.raises(CheckpointError, match="cannot use the checkpoint .*python/object"):
        load(saved)
    assert not (tmp_path / "pwned").exists()


def test_what_cannot_be_saved_says_why(trained, tmp_path):
    with pytest.raises(ValueError, match="config must be plain"):
        save(tmp_path / "a", trained[1], config={"net": torch.nn.Linear}, layout=LAYOUT)
    with pytest.raises(ValueError, match="names a checkpoint needs"):
        model = {**trained[1].model, "ema.denoiser.net.null": torch.zeros(1)}
        save(tmp_path / "a", trained[1]._replace(model=model), config=CONFIG, layout=LAYOUT)
    with pytest.raises(CheckpointError, match="neither a checkpoint, nor a run folder, nor a model that ships"):
        load(tmp_path / "nowhere")
    assert not os.listdir(tmp_path)


def test_run_folder_latest_and_keep_last(trained, tmp_path):
    folder = tmp_path / "checkpoints"
    for step in (5, 10, 100):
        save(step_folder(folder, step), trained[1]._replace(step=step), config=CONFIG, layout=LAYOUT)
    save(folder / "best", trained[1], config=CONFIG, layout=LAYOUT)
    assert load(tmp_path).step == 100 and find(tmp_path) == folder / "step_00000100"
    with (folder / "step_00000100" / "model.safetensors").open("r+b") as file:
        file.write(b"x")
    with pytest.warns(UserWarning, match="passed over a checkpoint: .*model.safetensors is damaged"):
        assert load_state(tmp_path).step == 10
    keep_last(folder, 2)
    assert sorted(os.listdir(folder)) == ["best", "step_00000010", "step_00000100"]
    shutil.rmtree(folder / "step_00000010")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="no checkpoint that is whole"):
        latest(folder)


def test_a_name_is_a_model_that_ships(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    save(tmp_path / "umaze", trained[1]._replace(optim={}), config=CONFIG, layout=LAYOUT)
    assert load("umaze").step == 10 and load("umaze").normalizer is None
    with pytest.raises(CheckpointError, match=r"ships with dforce; valid: umaze"):
        load("large")
    with pytest.raises(ValueError, match="no optimiser moments"):
        fit(objective(), batch_at, **PLAIN, steps=20, resume=load_state("umaze"))


def test_files_are_readable_by_others(saved):
    assert yaml.safe_load((saved / "config.yaml").read_text()) == CONFIG
    assert json.loads((saved / "state.json").read_text())["extra"] == {"val": 0.5}
    assert "dforce.load" in (saved / "README.md").read_text()
