"""What verbs that go on where they stopped share: their folder, the units of work done in it, what is told of them."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dforce.runs.jobs import Outcome, Stopped, Unit, claim, run_units
from dforce.report.html import write_index
from dforce.report.rows import Row, write_episodes
from dforce.report.table import csv_table
from dforce.runs.folder import RunFolder, write_atomic


def asked_out(out: Any) -> Any:
    """The folder that is asked for; in a sweep each job has its own."""
    job = HydraConfig.get()
    return job.runtime.output_dir if job.mode == RunMode.MULTIRUN else out


def open_folder(verb: str, config: Any, out: Any, *, resume: bool = True) -> RunFolder:
    """The run folder of a verb such as "benchmark/align", with the command line on record."""
    command = shlex.join(["dforce", *verb.split("/"), *HydraConfig.get().overrides.task])
    return RunFolder(verb, config, out=out, resume=resume, command=command)


def until(limit: float | None) -> Callable[[], bool]:
    """late(): are `limit` seconds over, counted from now? Never without a limit."""
    begin = time.monotonic()
    return (lambda: time.monotonic() - begin > limit) if limit else (lambda: False)


def go_on(folder: RunFolder, work: Callable[[], Outcome], *, named: int) -> None:
    """Does `work`, which ends in the folder's status and its page. named: units named of those that are left.

    Raises the first failure; a unit that `Stopped` has kept what it has, and is merely left.
    """
    try:
        with folder:
            outcome = work()
            for name, error in outcome.failed.items():
                if not isinstance(error, Stopped):
                    print(f"{name} failed: {error}")
                    raise error
        if outcome.left:
            folder.status(f"stopped: {len(outcome.left)} units are left")
            print(f"stopped with {len(outcome.left)} units left ({', '.join(outcome.left[:named])}...); the same "
                  f"command with out={folder.path} goes on")
    finally:
        write_index(folder.path)
    print(f"open {folder.path / 'index.html'}")


def do_units(units: Iterable[Unit], folder: RunFolder, *, late: Callable[[], bool], report: Callable[[], None],
             clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Does the units, what each took by `clock` into metrics.jsonl; then `report`, however they end."""
    work = [unit._replace(work=partial(_timed, folder, unit, number, clock)) for number, unit in enumerate(units, 1)]

    def tell(name: str, left: int) -> None:
        print(f"{name} ({left} of {len(work)} left)", flush=True)

    try:
        return run_units(work, folder.path / "locks", late=late, tell=tell)
    finally:
        report()


def _timed(folder: RunFolder, unit: Unit, number: int, clock: Callable[[], float]) -> None:
    begin = clock()
    unit.work()
    folder.log(number, unit=unit.name, unit_seconds=round(clock() - begin, 3))


def publish(folder: RunFolder, rows: list[Row], lines: list[Row], text: Callable[[], str],
            draw: Callable[[Path], Mapping[str, str]]) -> bool:
    """results.json, episodes.jsonl, tables.md of text(), tables.csv, and the pictures that draw(media) captions.

    False, and nothing is written, where another process is at it: it sees the same files.
    """
    with claim(folder.path / "locks" / "report.lock") as mine:
        if not mine:
            return False
        log = folder.path / "metrics.jsonl"
        done = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
        folder.results(rows, work_seconds=round(sum(one["unit_seconds"] for one in done), 1))
        write_episodes(folder.path / "episodes.jsonl", lines)
        write_atomic(folder.path / "tables.md", text())
        write_atomic(folder.path / "tables.csv", csv_table(rows))
        write_atomic(folder.media / "captions.json", json.dumps(draw(folder.media), indent=1) + "\n")
        return True
