"""Jobs over processes and kills, and the files that hold their results."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dforce.runs.jobs import Job, Stopped, claims_in, locked, run_jobs, slug
from dforce.runs.shards import read_shard, write_shard
from tests.forked import exit_code, forked


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dforce.runs.jobs.WAIT", 0.05)


def file_job(folder: Path, name: str, *needs: str, work: Callable[[], None] | None = None) -> Job:
    """Makes the file `name`, in which every doing of the work leaves a letter."""
    def note() -> None:
        if work is not None:
            work()
        with (folder / name).open("a") as file:
            file.write("x")

    return Job(name, needs, (folder / name).is_file, note)


def test_jobs_are_done_in_the_order_of_their_needs_and_only_once(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    chain = [file_job(tmp_path, "c", "b"), file_job(tmp_path, "b", "a"), file_job(tmp_path, "a")]
    for _ in range(2):
        outcome = run_jobs(chain, claims_in(tmp_path / "locks"), tell=lambda *what: told.append(what))
        assert outcome.left == [] and outcome.failed == {}
    assert told == [("a", 3), ("b", 2), ("c", 1)]
    assert [(tmp_path / name).read_text() for name in "abc"] == ["x"] * 3


def test_a_job_that_fails_leaves_those_that_need_it_and_no_others(tmp_path: Path) -> None:
    def broken() -> None:
        raise OSError("no space")

    def stopped() -> None:
        raise Stopped("later")

    chain = [file_job(tmp_path, "a", work=broken), file_job(tmp_path, "b", "a"), file_job(tmp_path, "c"),
             file_job(tmp_path, "d", work=stopped), Job("e", (), lambda: False, lambda: None)]
    outcome = run_jobs(chain, claims_in(tmp_path / "locks"))
    assert outcome.left == ["a", "b", "d", "e"] and (tmp_path / "c").is_file()
    assert {name: type(error) for name, error in outcome.failed.items()} == {"a": OSError, "d": Stopped,
                                                                             "e": RuntimeError}


def test_nothing_begins_once_it_is_late(tmp_path: Path) -> None:
    chain = [file_job(tmp_path, name) for name in "abc"]
    outcome = run_jobs(chain, claims_in(tmp_path / "locks"), late=lambda: (tmp_path / "a").is_file())
    assert outcome.left == ["b", "c"] and not (tmp_path / "b").exists()


def test_jobs_that_cannot_go_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="never come"):
        run_jobs([file_job(tmp_path, "a", "b"), file_job(tmp_path, "b", "a")], claims_in(tmp_path / "locks"))
    with pytest.raises(ValueError, match="share the file name 'n-4'"):
        run_jobs([file_job(tmp_path, "n=4"), file_job(tmp_path, "N 4")], claims_in(tmp_path / "locks"))


def worker(folder: Path, seconds: float) -> int:
    """A process with nine jobs, three in a chain three times over, each of so many seconds."""
    def job(number: int) -> Job:
        file = folder / f"job-{number}"

        def work() -> None:
            (folder / f"begun-{number}").touch()
            time.sleep(seconds)
            with file.open("a") as stream:
                stream.write("x")

        return Job(file.name, (f"job-{number - 3}",) if number >= 3 else (), file.is_file, work)

    def run() -> None:
        assert run_jobs([job(n) for n in range(9)], claims_in(folder / "locks")).left == []

    return forked(run)


def test_two_processes_do_every_job_once_and_one_takes_over_from_the_other_when_it_is_killed(tmp_path: Path) -> None:
    killed = worker(tmp_path, 60.0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun-0").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    both = [worker(tmp_path, 0.1) for _ in range(2)]
    while not (tmp_path / "job-8").exists() and len(list(tmp_path.glob("job-*"))) < 6 and (
            time.monotonic() < deadline):
        time.sleep(0.02)  # all that does not need job 0
    assert not (tmp_path / "job-0").exists()
    os.kill(killed, signal.SIGKILL)
    assert [exit_code(process) for process in both] == [0, 0] and exit_code(killed) == -signal.SIGKILL
    assert [(tmp_path / f"job-{n}").read_text() for n in range(9)] == ["x"] * 9


def test_a_claim_is_one_s_own_until_it_is_given_up(tmp_path: Path) -> None:
    with locked(tmp_path / "a.lock") as first, locked(tmp_path / "a.lock") as second:
        assert first and not second and f"process {os.getpid()} " in (tmp_path / "a.lock").read_text()
    with locked(tmp_path / "a.lock") as again:
        assert again
    assert slug("MCTG n=4, mean/x") == "mctg-n-4-mean-x"


def test_a_graph_runs_without_locks_and_its_jobs_can_be_pickled(tmp_path: Path) -> None:
    made = tmp_path / "made"
    job = pickle.loads(pickle.dumps(Job("make", (), made.is_file, partial(made.write_text, "x"))))
    assert run_jobs([job]).left == [] and made.read_text() == "x"
    assert list(tmp_path.iterdir()) == [made]


def test_a_shard_comes_back_as_it_was_unless_it_is_damaged_or_meant_otherwise(tmp_path: Path) -> None:
    file, identity = tmp_path / "deep" / "a.jsonl", {"node": {"scale": 0.5}, "seeds": (1, 2)}
    lines = [{"score": 1.5, "name": "é"}, {"score": None}]
    assert read_shard(file, identity) == ""
    write_shard(file, identity, {"chosen": {"scale": 1}}, lines)
    found = read_shard(file, identity)
    assert not isinstance(found, str) and found.lines == lines and found.header["chosen"] == {"scale": 1}
    assert "other settings (node.scale: 0.5, now 0.7)" in read_shard(file, {**identity, "node": {"scale": 0.7}})
    content = file.read_bytes()
    for place in (3, 80, len(content) - 4):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1:])
        assert "is damaged" in read_shard(file, identity)
    file.write_bytes(content[:-20])
    assert "is damaged" in read_shard(file, identity)
