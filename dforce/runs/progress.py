"""Progress by work done: a bar with an estimate on a terminal, a plain line every ten seconds elsewhere (logs, SLURM).

What works takes a callback `Advance` and knows of no terminal; what runs it opens a `Ticker` or a `bar`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

T = TypeVar("T")
SECONDS_PER_LINE = 10.0

Advance = Callable[[float], object]
"""advance(share): a further share of the work is done; the shares of all of it add up to 1."""

Bar = Callable[[str], AbstractContextManager[Advance]]
"""with bar(description) as advance: ...; `bar` below shows it, `no_bar` does not."""


class Ticker:
    """Counts work done: `with Ticker(steps, "train") as ticker: ticker.advance(note="loss 0.1")`.

    total: units of work, None while unknown. Silent on ranks but 0 and, off a terminal, until ten seconds have passed;
    then a line every ten seconds, whether or not work was reported meanwhile.
    """

    def __init__(self, total: float | None, description: str) -> None:
        self.total, self.description, self.done, self.note = total, description, 0.0, ""
        self._quiet = os.environ.get("RANK", "0") != "0"
        self._bar: Any = None
        self._begin, self._lines = time.monotonic(), 0
        self._ended = threading.Event()

    def __enter__(self) -> Ticker:
        if self._quiet:
            return self
        if sys.stderr.isatty():
            self._bar = _rich_bar()
            self._bar.start()
            self._task = self._bar.add_task(self.description, total=self.total, note="", left="")
        else:
            threading.Thread(target=self._print_regularly, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._bar is not None:
            self._bar.stop()
        elif self._lines:  # lines were printed, so say how it ended too
            self._print()

    def advance(self, count: float = 1, note: str = "") -> None:
        """`count` more units are done, or a part of one; `note` is shown beside the estimate."""
        self.done, self.note = self.done + count, note or self.note
        if self._bar is not None:
            self._bar.update(self._task, completed=round(self.done, 2), total=self.total, note=self.note,
                             left=self._left())

    def part(self, units: float = 1) -> Advance:
        """The callback of work that is worth so many units of this."""
        return lambda share: self.advance(units * share)

    def _left(self) -> str:
        """How long it will take, by the work done so far; "" where nothing is known or left."""
        if not self.total or not 0 < self.done < self.total:
            return ""
        return f"{_clock((time.monotonic() - self._begin) * (self.total - self.done) / self.done)} to go"

    def _print_regularly(self) -> None:
        while not self._ended.wait(SECONDS_PER_LINE):
            self._lines += 1
            self._print()

    def _print(self) -> None:
        parts = [f"{self.description}: {self.done:.3g}" + (f"/{self.total:g}" if self.total else ""),
                 f"{_clock(time.monotonic() - self._begin)} elapsed", self._left(), self.note]
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)


@contextmanager
def bar(description: str) -> Iterator[Advance]:
    """A bar of work that is told in shares; see `Bar`."""
    with Ticker(100, description) as ticker:  # percent
        yield ticker.part(100)


def no_bar(description: str) -> AbstractContextManager[Advance]:
    """The `Bar` that nobody sees."""
    return nullcontext(no_advance)


def no_advance(share: float) -> None:
    """The `Advance` that nobody hears."""


def telling(data: Callable[[int], T], steps: int, advance: Advance) -> Callable[[int], T]:
    """data(step) of a training of so many steps, which asks for it once a step: each is told as a share."""
    def data_of(step: int) -> T:
        advance(1 / steps)
        return data(step)
    return data_of


def progress(items: Iterable[T], description: str, *, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows how far it is. total: their number, where `len(items)` is not known."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Ticker(total, description) as ticker:
        for item in items:
            yield item
            ticker.advance()


def _rich_bar() -> Any:
    from rich import progress as rich
    from rich.console import Console

    text, note = rich.TextColumn("{task.description}"), rich.TextColumn("{task.fields[left]} {task.fields[note]}")
    count = rich.TextColumn("{task.percentage:>3.0f}%")
    return rich.Progress(text, rich.BarColumn(), count, rich.MofNCompleteColumn(), rich.TimeElapsedColumn(), note,
                         console=Console(stderr=True))


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"
