"""`dforce train`: its checkpoints, its early look, sweeps, several processes, and going on where it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dforce
from dforce.cli.main import main
from dforce.config.moved import MOVED
from dforce.data import make_maze_dataset
from dforce.runs.training_run import Keeper
from dforce.train.checkpoint import CheckpointError, find, load_state
from tests.train.test_checkpoint import reseal
from tests.train.test_distributed import environment
from tests.train.test_fit import assert_same

SMALL = ["horizon=20", "stack=5", "batch=16", "held_out=0.2", "net.width=16", "fit.steps=40", "fit.warmup=5",
         "fit.validate_every=10", "fit.precision=fp32", "save_every=15"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("minari")
    make_maze_dataset("umaze", steps=10_000, name="dforce/small-v1", root=root)
    return root


@pytest.fixture(autouse=True)
def _elsewhere(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))


def trained(out: str, *more: str, code: int = 0) -> Path:
    assert main(["train", "data=dforce/small-v1", *SMALL, f"out={out}", *more]) == code
    return Path(out)


def resumed(folder: Path, *more: str, code: int = 0) -> Path:
    assert main(["train", f"resume={folder}", *more]) == code
    return folder


@pytest.fixture(scope="module")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run. Not to be changed: `copied` is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        return trained(str(tmp_path_factory.mktemp("finished") / "run"))


def copied(folder: Path, name: str = "run") -> Path:
    return Path(shutil.copytree(folder, name))


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def stopped_at(step: int, number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on training signals itself after `step` steps."""
    write = Keeper.write

    def signalling(self: Keeper, log: Any, **due: bool) -> None:
        write(self, log, **due)
        if log.step == step - 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Keeper, "write", signalling)


@pytest.mark.parametrize("key", ["fit.lr=1e12 fit.clip=1e12 fit.ema=null", "fit.lr=1e12 fit.steps=6"])
def test_a_diverged_run_says_what_to_change_and_is_not_done(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained("run", *key.split(), "fit.warmup=0", code=2)
    error = capsys.readouterr().err
    assert "training diverged" in error and "lower lr" in error and "Traceback" not in error
    assert (folder / "STATUS").read_text().startswith("failed: training diverged")
    for place in (folder / "checkpoints").glob("*"):
        assert all(value.isfinite().all() for value in load_state(place).model.values())


@pytest.mark.parametrize("again, left", [
    (["resume=run"], "half a checkpoint"),
    pytest.param(["resume=run"], "no configuration", marks=pytest.mark.slow),
    pytest.param(["data=dforce/small-v1", *SMALL, "out=run"], "no configuration", marks=pytest.mark.slow),
    pytest.param(["data=dforce/small-v1", *SMALL, "out=run"], "half a checkpoint", marks=pytest.mark.slow)])
def test_killed_before_anything_was_saved_it_begins_at_step_0(again: list[str], left: str,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    whole = load_state(trained("whole", "save_every=40"))
    run = Path("run")
    (run / "checkpoints" / "step_00000015.tmp-4711").mkdir(parents=True)
    (run / "STATUS").write_text("running\n")
    if left == "no configuration":
        shutil.rmtree(run / "checkpoints")
        again = [*again, "data=dforce/small-v1", *SMALL] if again == ["resume=run"] else again
    else:
        shutil.copy("whole/config.yaml", run)
        (run / "metrics.jsonl").write_text('{"step": 10, "loss": 9.0}\n{"st')
    assert main(["train", *again]) == 0
    assert_same(load_state(run), whole)
    assert metrics(run) == metrics(Path("whole")) and not list(run.rglob("*.tmp*"))


@pytest.mark.slow
def test_best_and_last(finished: Path) -> None:
    folder = finished
    assert checkpoints(folder) == ["best", "step_00000030", "step_00000040"]
    held_out = {line["step"]: line["val_loss"] for line in metrics(folder) if "val_loss" in line}
    assert sorted(held_out) == [10, 20, 30, 40]
    best = dforce.load(folder / "checkpoints" / "best")
    assert best.step == min(held_out, key=held_out.__getitem__) and dforce.load(folder).step == 40
    state = json.loads((folder / "checkpoints" / "best" / "state.json").read_text())
    assert state["extra"]["val_loss"] == held_out[best.step]
    assert (folder / "STATUS").read_text() == "done\n" and (folder / "media" / "loss.png").exists()


@pytest.mark.slow
def test_a_worse_validation_leaves_the_best_alone(finished: Path) -> None:
    folder = copied(finished)
    before = load_state(folder / "checkpoints" / "best")
    resumed(folder, "fit.steps=60", "fit.lr=1.0", "fit.warmup=0")  # it does not survive such a rate
    assert_same(load_state(folder / "checkpoints" / "best"), before)
    assert dforce.load(folder).step == 60


def test_sigterm_and_resume_are_the_undisturbed_run(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained("whole", "fit.accumulate=2")
    with monkeypatch.context() as patch:
        stopped_at(22, signal.SIGTERM, patch)
        part = trained("part", "fit.accumulate=2", code=143)
    assert (part / "STATUS").read_text() == "stopped at step 22; go on with resume=part\n"
    assert load_state(part).step == 22 and load_state(part).record["parts"] == 2
    with (part / "metrics.jsonl").open("a") as file:  # a line after the checkpoint, and half a one
        file.write('{"step": 23, "loss": 9.0}\n{"step": 24, "lo')
    (part / "checkpoints" / "step_00000030").mkdir()  # damaged
    with pytest.warns(UserWarning, match="passed over a checkpoint"):
        resumed(part)
    assert_same(load_state(part), load_state(whole))
    assert metrics(part) == metrics(whole) and (part / "STATUS").read_text() == "done\n"
    assert_same(load_state(part / "checkpoints" / "best"), load_state(whole / "checkpoints" / "best"))
    assert "width: 16" in (part / "config.yaml").read_text()  # of the run itself, not the defaults
    assert sorted(path.name for path in Path().iterdir()) == ["part", "whole"]


@pytest.mark.slow
def test_resume_of_a_finished_run_and_beyond(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(finished)
    before = load_state(folder)
    resumed(folder)
    assert "has all its 40 steps; raise fit.steps" in capsys.readouterr().out
    assert (folder / "STATUS").read_text() == "done\n" and len(metrics(folder)) == 5
    assert_same(load_state(folder), before)
    resumed(folder, "fit.steps=45")
    assert load_state(folder).step == 45 and metrics(folder)[-1]["step"] == 45


@pytest.mark.slow
def test_resume_before_the_first_checkpoint_begins_at_the_beginning(finished: Path) -> None:
    killed = copied(finished, "killed")
    shutil.rmtree(killed / "checkpoints")
    resumed(killed)
    assert metrics(killed) == metrics(finished)
    assert_same(load_state(killed), load_state(finished))


@pytest.mark.slow
def test_a_checkpoint_begins_a_folder_of_its_own(finished: Path) -> None:
    folder = copied(finished)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    resumed(folder / "checkpoints" / "step_00000030", "out=other")
    assert_same(load_state("other"), load_state(folder))
    assert [line["step"] for line in metrics(Path("other"))] == [40]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    resumed(folder / "checkpoints" / "best", "fit.steps=42")
    assert len(list(Path("runs/train").iterdir())) == 1


@pytest.mark.slow
def test_a_run_that_names_old_places_goes_on_as_it_would_have(finished: Path) -> None:
    """Its configurations, that of the folder and that of the checkpoint, say `dforce.fit.fit` and the like."""
    folder, old = copied(finished), copied(finished, "old")
    for place in (old, find(old)):
        text = (place / "config.yaml").read_text()
        for before, now in MOVED.items():
            text = text.replace(f" {now}\n", f" {before}\n")
        (place / "config.yaml").write_text(text)
    assert "_target_: dforce.fit.fit" in text and "_target_: dforce.loss.ForcingObjective" in text
    reseal(place)
    resumed(folder, "fit.steps=45")
    resumed(old, "fit.steps=45")
    assert_same(load_state(old), load_state(folder))
    assert metrics(old) == metrics(folder)


@pytest.mark.slow
def test_what_cannot_be_resumed_says_why(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for where in ("nowhere", "data"):
        if where == "data":
            assert main(["data", "maze", "steps=4000", "name=dforce/tiny-v0", "out=data"]) == 0
        resumed(Path(where), code=2)
        assert f"resume={where} is no run folder" in capsys.readouterr().err
    assert not Path("nowhere").exists()
    folder = copied(finished)
    resumed(folder, "data=dforce/tiny-v0", "fit.steps=50", code=2)
    assert "are not those that run was trained on" in capsys.readouterr().err
    resumed(folder, "net.width=32", "fit.steps=50", code=2)  # with the data of the run, whatever was tried since
    assert "another model" in capsys.readouterr().err
    for path in (folder / "checkpoints").glob("step_*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="passed over"):
        resumed(folder, "fit.steps=50", code=2)
    assert "no checkpoint that is whole" in capsys.readouterr().err
    with pytest.warns(UserWarning), pytest.raises(CheckpointError):
        dforce.load(folder)
    assert dforce.load(folder / "checkpoints" / "best").step


@pytest.mark.slow
def test_a_sweep_gives_a_folder_a_job() -> None:
    small = [word for word in SMALL if not word.startswith("fit.")]
    assert main(["train", "-m", "data=dforce/small-v1", *small, "fit.lr=1e-3,2e-3", "fast_dev_run=true"]) == 0
    (sweep,) = Path("runs/train").iterdir()
    logs = [metrics(sweep / job) for job in "01"]
    assert [log[-1]["step"] for log in logs] == [20, 20] and logs[0][-1]["loss"] != logs[1][-1]["loss"]
    assert [line["step"] for line in logs[0] if "val_loss" in line] == [10, 20]
    for job, lr in zip("01", ("0.001", "0.002"), strict=True):
        assert f"lr: {lr}" in (sweep / job / "config.yaml").read_text()
        assert (sweep / job / "STATUS").read_text() == "done\n" and dforce.load(sweep / job).step == 20


@pytest.mark.slow
def test_without_held_out_episodes_there_is_no_best() -> None:
    folder = trained("run", "held_out=0", "fit.steps=15")
    assert checkpoints(folder) == ["step_00000015"] and "val_loss" not in metrics(folder)[-1]


@pytest.mark.slow
def test_carried_states_go_through_a_stop(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = trained("whole", "carry=true")
    with monkeypatch.context() as patch:
        stopped_at(22, signal.SIGTERM, patch)
        part = trained("part", "carry=true", code=143)
    resumed(part)
    assert load_state(whole).carried["0"].shape == (16, 1, 16)
    for name, value in load_state(whole).carried.items():
        assert torch.equal(load_state(part).carried[name], value)
    assert_same(load_state(part), load_state(whole))
    assert metrics(part) == metrics(whole) != metrics(finished)


RANKED = """
from tests import conftest  # noqa: F401
import sys
from dforce.cli.main import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("carry", ["false", "true"])
def test_torchrun_with_two_processes_gives_the_loss_curve_of_one(carry: str, tmp_path: Path) -> None:
    """Also where the run begins with one process and ends with two."""
    one = trained("one", "fit.accumulate=2", f"carry={carry}")
    script = tmp_path / "ranked.py"
    script.write_text(RANKED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    settings = ["data=dforce/small-v1", *SMALL, "fit.accumulate=2", f"carry={carry}"]
    trained("changed", "fit.accumulate=2", f"carry={carry}", "fit.steps=20", "+fit.decay=constant")
    steady = trained("steady", "fit.accumulate=2", f"carry={carry}", "+fit.decay=constant")
    runs = [[*settings, "out=two"], ["resume=changed", "fit.steps=40"]]
    for arguments in runs:
        done = subprocess.run([*command, "train", *arguments], env=environment(), timeout=250, capture_output=True,
                              text=True)
        assert done.returncode == 0, done.stderr
    for two, single in (("two", one), ("changed", steady)):
        ours, theirs = metrics(Path(two)), metrics(single)
        assert [line["step"] for line in ours][-1] == 40
        for line, wanted in zip(ours[-3:], theirs[-3:], strict=True):
            for key in ("step", "loss", "grad_norm"):
                assert line[key] == pytest.approx(wanted[key], rel=1e-4), key
        for name, value in load_state(single).model.items():
            torch.testing.assert_close(load_state(two).model[name], value, rtol=0, atol=1e-5)
        for name, value in load_state(single).carried.items():
            torch.testing.assert_close(load_state(two).carried[name], value, rtol=0, atol=1e-5)
