"""Run folders: nothing is lost, nothing is overwritten, and STATUS tells the truth."""

from __future__ import annotations

import json
import math
import os
import platform
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dforce.report.rows import read_results
from dforce.runs.folder import RunFolder, Ticker, environment, nothing_saved, peak_memory_mb, progress, write_atomic
from dforce.runs.lock import LOCK
from dforce.runs.progress import bar
from dforce.runs.training_run import has_checkpoint
from tests.forked import exit_code, forked

ROW = {
    "task": "t", "method": "m", "variant": {"order": 2}, "metric": "score", "value": 1.0, "low": 0.5, "high": 1.5,
    "n": 3, "seeds": 1, "unit": "", "higher_is_better": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_contract() -> None:
    with RunFolder("train", {"steps": 3, "net": {"width": 8}}) as folder:
        assert (folder.path / "STATUS").read_text() == "running\n"
        folder.log(1, loss=torch.tensor(0.5), rate=np.float32(0.25), bad=math.nan)
        folder.log(2, loss=0.25)
        folder.episodes([{"episode": 0, "score": 1.0}])
        folder.episodes([{"episode": 1, "score": 2.0}])
        folder.results([ROW])
    assert folder.path.parent == Path("runs/train")
    names = {"STATUS", "config.yaml", "env.json", "metrics.jsonl", "episodes.jsonl", "results.json"}
    assert {p.name for p in folder.path.iterdir()} == names | {"media", "checkpoints", LOCK}
    assert (folder.path / "STATUS").read_text() == "done\n"
    first, second = lines(folder.path / "metrics.jsonl")
    assert (first["step"], first["loss"], first["rate"], first["bad"], second["loss"]) == (1, 0.5, 0.25, None, 0.25)
    assert [row["score"] for row in lines(folder.path / "episodes.jsonl")] == [1.0, 2.0]
    header, rows = read_results(folder.path / "results.json")
    assert rows == [ROW] and header["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert header["peak_memory_mb"] > 50 and header["seconds"] >= 0
    assert json.loads((folder.path / "env.json").read_text())["machine"]["cores"] == os.cpu_count()


def test_config_is_written_resolved() -> None:
    from omegaconf import OmegaConf

    cfg = OmegaConf.create({"a": 1, "b": "${a}"})
    with RunFolder("x", cfg, out="here") as folder:
        pass
    assert OmegaConf.load(folder.path / "config.yaml") == {"a": 1, "b": 1}


def test_failure_is_on_record_and_raised() -> None:
    with pytest.raises(KeyError), RunFolder("x", out="here"):
        raise KeyError("two\nlines")
    assert Path("here/STATUS").read_text().startswith("failed: ")
    assert Path("here/STATUS").read_text().count("\n") == 1


def test_never_overwrites() -> None:
    with RunFolder("x", out="here") as folder:
        folder.log(1, a=1)
    with pytest.raises(FileExistsError, match="resume"):
        RunFolder("x", out="here")
    with RunFolder("x", out="here", resume=True) as folder:
        folder.log(2, a=2)
    assert [row["step"] for row in lines(Path("here/metrics.jsonl"))] == [1, 2]
    Path("empty").mkdir()
    RunFolder("x", out="empty")


def test_runs_of_one_second_do_not_share_a_folder() -> None:
    assert len({RunFolder("x").path for _ in range(3)}) == 3


def test_only_rank_zero_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="out="):
        RunFolder("x")
    with RunFolder("x", {}, out="here") as folder:
        folder.log(1, a=1)
        folder.results([ROW])
        folder.episodes([{"a": 1}])
    assert not Path("here").exists()


def test_write_atomic_keeps_the_old_text_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path("file")
    write_atomic(file, "old")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(file, "new")
    assert file.read_text() == "old" and [p.name for p in Path().iterdir()] == ["file"]


def test_peak_memory_follows_allocation() -> None:
    def allocate() -> None:  # in a process of its own, whose peak is what it holds when it begins
        before = peak_memory_mb()
        block = np.ones(256 * 2**20 // 8)
        assert before + 200 <= peak_memory_mb() <= before + 300
        del block
        assert peak_memory_mb() >= before + 200

    assert exit_code(forked(allocate)) == 0


def test_progress_yields_everything_in_silence_when_short(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter(range(5)), "count", total=5)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_a_line_comes_every_ten_seconds_whether_or_not_work_was_told(capsys: pytest.CaptureFixture[str],
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dforce.runs.progress.SECONDS_PER_LINE", 0.05)
    with Ticker(4, "train") as ticker:
        ticker.advance(0.5, note="loss 0.5")  # half a unit: there is an estimate within the first epoch
        time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3 and lines[0] == "train: 0.5/4, 0:00 elapsed, 0:00 to go, loss 0.5"


def test_what_is_left_is_estimated_by_the_work_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 12))  # every look at the clock is 12 s after the one before
    monkeypatch.setattr("dforce.runs.progress.time.monotonic", lambda: next(clock))
    ticker = Ticker(8, "align")
    assert ticker._left() == ""
    ticker.part(4)(0.25)
    assert ticker._left() == "1:24 to go"  # 12 s for one of eight
    ticker.part(7)(1)
    assert ticker._left() == ""


def test_on_a_terminal_there_is_a_bar_with_an_estimate(capsys: pytest.CaptureFixture[str],
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with bar("plan") as advance:
        time.sleep(0.05)
        advance(0.4)
        time.sleep(0.3)
    shown = capsys.readouterr().err
    assert "plan" in shown and "40%" in shown and "to go" in shown and "-:--:--" not in shown


@pytest.mark.parametrize(("program", "told"), [
    ("/home/me/dforce/scripts/studies/planning/delay.py", "python scripts/studies/planning/delay.py --steps 20"),
    ("/home/me/mine.py", "python mine.py --steps 20"), ("/usr/bin/dforce", "dforce --steps 20")])
def test_the_command_on_record_names_a_script_as_the_repository_does(program: str, told: str,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--steps", "20"])
    assert environment()["command"] == told


def hold(folder: str, how: str) -> None:
    with RunFolder("x", {"a": 1}, out=folder, resume=how != "new", shared=how == "shared"):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["new", "shared"])
def test_a_folder_in_use_is_refused_by_the_name_of_its_process(how: str) -> None:
    with RunFolder("x", {"a": 1}, out="here", shared=how == "shared") as folder:
        folder.log(1, loss=1.0)
        child = os.fork()
        if not child:
            code = 3
            try:
                RunFolder("x", {"a": 2}, out="here", resume=True)
            except ValueError as error:
                right = f"here is in use by process {os.getppid()} on {platform.node()} since" in str(error)
                code = 0 if right else 4
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert "a: 1" in Path("here/config.yaml").read_text()
        with RunFolder("x", {"a": 1}, out="here", resume=True, shared=True):  # of the same process
            pass
    RunFolder("x", out="here", resume=True)


def test_processes_that_share_a_folder_are_together_in_it() -> None:
    with RunFolder("x", out="here", shared=True):
        code = exit_code(forked(lambda: RunFolder("x", out="here", resume=True, shared=True)))
        assert code == 0


def test_a_killed_process_holds_nothing_and_what_it_began_is_begun_anew() -> None:
    assert exit_code(forked(lambda: hold("here", "new"))) == -signal.SIGKILL
    (Path("here/checkpoints") / "step_00000005.tmp-1").mkdir()  # while the first checkpoint was written
    Path("here/metrics.jsonl").write_text('{"step": 1}\n{"st')
    assert nothing_saved(Path("here")) and not has_checkpoint(Path("here"))
    with RunFolder("x", {"a": 2}, out="here"):
        pass
    assert Path("here/STATUS").read_text() == "done\n" and "a: 2" in Path("here/config.yaml").read_text()
    with pytest.raises(FileExistsError, match="here has content"):  # it is over: not a beginning
        RunFolder("x", out="here")


@pytest.mark.parametrize("content", ["results.json", "media/a.png", "checkpoints/step_00000005/MANIFEST.json", "mine"])
def test_what_a_killed_run_has_saved_is_kept(content: str) -> None:
    assert exit_code(forked(lambda: hold("here", "new"))) == -signal.SIGKILL
    Path("here", content).parent.mkdir(exist_ok=True)
    Path("here", content).write_text("")
    with pytest.raises(FileExistsError, match="here has content"):
        RunFolder("x", out="here")


@pytest.mark.parametrize("config, again", [({"a": 1}, True), ({"a": 2}, False), ({"a": 1, "resume": None}, False)])
def test_what_the_same_command_makes_anyway_is_made_anew(config: dict, again: bool) -> None:
    def cut_off() -> None:
        folder = RunFolder("x", {**config, "a": 1}, out="here")
        folder.log(1, loss=1.0), folder.episodes([{"episode": 0}]), folder.results([ROW])
        (folder.path / "reward").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)

    assert exit_code(forked(cut_off)) == -signal.SIGKILL
    if not again:
        with pytest.raises(FileExistsError, match="here has content"):
            RunFolder("x", config, out="here")
        assert len(lines(Path("here/episodes.jsonl"))) == 1
        return
    with RunFolder("x", config, out="here") as folder:
        folder.log(2, loss=0.5)
    assert [line["step"] for line in lines(Path("here/metrics.jsonl"))] == [2]
    assert not Path("here/episodes.jsonl").exists() and not Path("here/reward").exists()
    assert len(json.loads(Path("here/env.json").read_text())["before"]) == 1
    with pytest.raises(FileExistsError, match="here has content"):  # it is done
        RunFolder("x", config, out="here")
