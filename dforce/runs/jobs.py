"""Work in units that each end in a file: several processes share it, and any of them may be killed at any time."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

WAIT = 2.0  # seconds between looks at what other processes are doing


class Unit(NamedTuple):
    """One piece of work. name: unlike all others; needs: names of units whose results it reads.

    done() tells whether its result is there, whole, and made as it is wanted now (and says why where it is not);
    work() makes it, and leaves nothing half written. `done` is asked only once all of `needs` are done.
    """

    name: str
    needs: tuple[str, ...]
    done: Callable[[], bool]
    work: Callable[[], None]


class Stopped(Exception):
    """Raised by work that kept what it has and is to be gone on with later."""


class Outcome(NamedTuple):
    """Names of units: those left of all, and with their errors those that failed, or were `Stopped`, here."""

    left: list[str]
    failed: dict[str, Exception]


def run_units(units: Sequence[Unit], locks: Path, *, late: Callable[[], bool] = lambda: False,
              tell: Callable[[str, int], None] = lambda name, left: None) -> Outcome:
    """Do all units, each once over all processes that share `locks`, in their order as far as `needs` allow.

    late: asked before each unit; once true no other begins. tell(name, left): before each unit done here. A unit
    that fails is left, with those that need it; the others go on. Where all that is left is in other processes'
    hands this one waits, and takes over what they drop. ValueError where units need each other in a circle.
    """
    check_units(units)
    finished: set[str] = set()
    failed: dict[str, Exception] = {}
    while True:
        left = []
        for unit in units:
            if unit.name not in finished and set(unit.needs) <= finished and unit.done():
                finished.add(unit.name)
            elif unit.name not in finished:
                left.append(unit)
        doable = [unit for unit in left if set(unit.needs) <= finished and unit.name not in failed]
        if not doable or late():
            return Outcome([unit.name for unit in left], failed)
        if not any(_attempt(unit, locks, failed, partial(tell, unit.name, len(left))) for unit in doable):
            time.sleep(WAIT)


def _attempt(unit: Unit, locks: Path, failed: dict[str, Exception], tell: Callable[[], None]) -> bool:
    """Do a unit unless another process is at it; False if one is."""
    with claim(locks / (slug(unit.name) + ".lock")) as mine:
        if mine and not unit.done():  # it may have been done while we looked
            tell()
            try:
                unit.work()
                if not unit.done():
                    raise RuntimeError(f"{unit.name} ended without the result that it was to make")
            except Stopped as stop:
                failed[unit.name] = stop
            except Exception as error:  # noqa: BLE001  (told by the caller, once the others are done)
                failed[unit.name] = error
        return mine


@contextmanager
def claim(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold a lock file, or get False at once where another process holds it; with `wait` hold it once that is free.

    It is the kernel's lock, which ends with its process however that ends, so none is ever left over. The file says
    who holds it, for people to read.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        file.truncate(0)
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield True


def check_units(units: Sequence[Unit]) -> None:
    """ValueError for names that are not different on disk, needs that nobody meets, and circles."""
    names = [unit.name for unit in units]
    for name in names:
        same = [other for other in names if slug(other) == slug(name)]
        if len(same) > 1:
            raise ValueError(f"units {same} would share the file name {slug(name)!r}; give them names that differ in "
                             "letters or digits")
    before: set[str] = set()
    while len(before) < len(units):
        ready = {unit.name for unit in units if set(unit.needs) <= before}
        if ready == before:
            stuck = {unit.name: [need for need in unit.needs if need not in before] for unit in units
                     if unit.name not in before}
            raise ValueError(f"these units wait for others that never come: {stuck}")
        before = ready


def slug(name: str) -> str:
    """A name as a file name: "MCTG n=4" -> "mctg-n-4"."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
