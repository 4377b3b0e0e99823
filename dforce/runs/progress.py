"""Progress with an ETA: a bar on a terminal, a plain line every ten seconds elsewhere (logs, SLURM)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS_PER_LINE = 10.0


class Ticker:
    """Counts work done: `with Ticker(steps, "train") as ticker: ticker.advance(note="loss 0.1")`.

    total: units of work, None while unknown. Silent on ranks but 0 and, off a terminal, until ten seconds have passed.
    """

    def __init__(self, total: int | None, description: str) -> None:
        self.total, self.description, self.done = total, description, 0
        self._quiet = os.environ.get("RANK", "0") != "0"
        self._bar: Any = None
        self._begin = self._last = time.monotonic()

    def __enter__(self) -> Ticker:
        if not self._quiet and sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, note="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._last > self._begin:  # lines were printed, so say how it ended too
            self._print()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside the ETA."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._task, advance=count, total=self.total, note=note)
        elif not self._quiet and time.monotonic() - self._last >= SECONDS_PER_LINE:
            self._print(note)

    def _print(self, note: str = "") -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._begin
        line = f"{self.description}: {self.done}" + (f"/{self.total}" if self.total else "")
        line += f", {_clock(elapsed)} elapsed"
        if self.total and 0 < self.done < self.total:
            line += f", {_clock(elapsed * (self.total - self.done) / self.done)} to go"
        print(line + (f", {note}" if note else ""), file=sys.stderr, flush=True)


def progress(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows how far it is. total: their number, where `len(items)` is not known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Ticker(total, description) as ticker:
        for item in items:
            yield item
            ticker.advance()


def _bar() -> Any:
    from rich import progress as rich
    from rich.console import Console

    text, note = rich.TextColumn("{task.description}"), rich.TextColumn("{task.fields[note]}")
    times = rich.TimeElapsedColumn(), rich.TimeRemainingColumn()
    return rich.Progress(text, rich.BarColumn(), rich.MofNCompleteColumn(), *times, note, console=Console(stderr=True))


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"
