"""A graph of jobs as a run: its folder, its time limit, what each job took, and what is published of all results."""

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dforce.config import bounded_yaml, present
from dforce.report.rows import Row, write_episodes
from dforce.report.table import csv_table
from dforce.runs.folder import Invocation, RunFolder, nothing_saved, write_atomic
from dforce.runs.jobs import Job, Outcome, Stopped, claims_in, locked, run_jobs
from dforce.runs.shards import differing


class Deadline:
    """late(): are `seconds` over since this was made? Never, where they are None or 0."""

    def __init__(self, seconds: float | None):
        self.end = time.monotonic() + seconds if seconds else float("inf")

    def __call__(self) -> bool:
        return time.monotonic() > self.end


class PrintOnce:
    """tell(text): prints every text once, however often it is told."""

    def __init__(self) -> None:
        self.printed: set[str] = set()

    def __call__(self, text: str) -> None:
        if text not in self.printed:
            self.printed.add(text)
            print(text, flush=True)


def check_settings(call: Invocation, free: Collection[str]) -> None:
    """ValueError where the folder of a run holds one of other settings, but for the keys in `free`."""
    if call.out is None:
        return
    out, file = Path(call.out), Path(call.out) / "config.yaml"
    if not file.is_file():
        if out.is_dir() and not nothing_saved(out):
            raise ValueError(f"{out} has content that is no run of {call.verb.replace('/', ' ')}; choose another out=")
        return
    before, now = present(yaml.safe_load(bounded_yaml(file))), present(call.config)
    kept = [key for key in now if key not in free]
    changed = differing({key: before.get(key) for key in kept}, {key: now[key] for key in kept})
    other = [line.partition(":")[0] for line in changed]
    if other:
        raise ValueError(f"{out} holds a run with other {', '.join(other)}: give the same settings, or another out=")


def run_graph(call: Invocation, work: Callable[[RunFolder], Outcome], *, names: int = 4) -> Path | None:
    """Does `work` in the run folder of `call`, new or old; its STATUS says how many jobs are left. None if some are.

    work: most of it by `do_jobs`. names: of jobs left that are printed. Raises the first failure; `Stopped` is none.
    """
    with call.folder(resume=True, shared=True) as folder:
        outcome = work(folder)
        for name, error in outcome.failed.items():
            if not isinstance(error, Stopped):
                print(f"{name} failed: {error}")
                raise error
        if outcome.left:
            folder.ending = f"stopped: {len(outcome.left)} jobs are left"
            print(f"stopped with {len(outcome.left)} jobs left ({', '.join(outcome.left[:names])}...); the same "
                  f"command with out={folder.path} goes on")
    return None if outcome.left else folder.path


def do_jobs(jobs: Iterable[Job], folder: RunFolder, *, late: Callable[[], bool], report: Callable[[], None],
            clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Does the jobs, shared with other processes, then `report`, however they end; logs the seconds by `clock`."""
    timed = [job._replace(work=partial(_timed, folder, job, number, clock)) for number, job in enumerate(jobs, 1)]

    def tell(name: str, left: int) -> None:
        print(f"{name} ({left} of {len(timed)} left)", flush=True)

    try:
        return run_jobs(timed, claims_in(folder.path / "locks"), late=late, tell=tell)
    finally:
        report()


def _timed(folder: RunFolder, job: Job, number: int, clock: Callable[[], float]) -> None:
    begin = clock()
    job.work()
    folder.log(number, job=job.name, job_seconds=round(clock() - begin, 3))


def publish(folder: RunFolder, rows: list[Row], lines: list[dict[str, Any]], text: Callable[[], str],
            draw: Callable[[Path], Mapping[str, str]]) -> bool:
    """results.json, episodes.jsonl, tables.*, pictures that draw(media) captions; False where another publishes."""
    with locked(folder.path / "locks" / "report.lock") as mine:
        if not mine:
            return False
        log = folder.path / "metrics.jsonl"
        done = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
        seconds = sum(line.get("job_seconds", line.get("unit_seconds", 0.0)) for line in done)  # units: of dforce 0.1
        folder.results(rows, work_seconds=round(seconds, 1))
        write_episodes(folder.path / "episodes.jsonl", lines)
        write_atomic(folder.path / "tables.md", text())
        write_atomic(folder.path / "tables.csv", csv_table(rows))
        folder.captions(draw(folder.media))
        return True
