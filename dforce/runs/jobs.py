"""A graph of jobs. A job is a function of files: it reads those that its needs made, and ends in files of its own.

The graph is a sequence of `Job`; nothing in it says where or by whom it is run. `run_jobs` runs it in this process, and
shares it with others by the `claim` that it is given: `dforce.runs.claims` has one for the processes of one machine. An
engine for clusters would submit each job after those it needs: a job can be pickled if its `done` and `work` can.
"""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from dforce.train.interrupts import stop_if_received

WAIT = 2.0  # seconds between looks at jobs that other processes have claimed


class Job(NamedTuple):
    """One piece of work."""

    name: str  # unlike all others
    needs: tuple[str, ...]  # names of the jobs whose results it reads
    done: Callable[[], bool]  # is the result there, whole, of the present settings? Asked once `needs` are done
    work: Callable[[], None]  # makes the result, and leaves nothing half written


class Stopped(Exception):
    """Raised by work that kept its progress and can be continued later."""


class Outcome(NamedTuple):
    """left: names of the jobs that are not done. failed: error of each job that failed, or was `Stopped`, here."""

    left: list[str]
    failed: dict[str, Exception]


Claim = Callable[[str], AbstractContextManager[bool]]
"""with claim(name) as mine: True while this process alone may do the job of that name, False if another one does it."""


def unshared(name: str) -> AbstractContextManager[bool]:
    """The claim of a graph that only this process runs: always granted."""
    return nullcontext(True)


def run_jobs(jobs: Sequence[Job], claim: Claim = unshared, *, late: Callable[[], bool] = lambda: False,
             tell: Callable[[str, int], None] = lambda name, left: None) -> Outcome:
    """Does every job that is not done, in the given order as far as their needs allow.

    claim: shares the jobs with other processes. Where they hold all that can be done, this one waits, and takes over
        what they drop.
    late: asked before each job; once true, no other begins.
    tell(name, number of jobs left): called before each job that is done here.
    A job that fails is left, with those that need it; the others go on.
    Raises ValueError for a graph that `check_jobs` refuses.
    """
    check_jobs(jobs)
    finished: set[str] = set()
    failed: dict[str, Exception] = {}
    while True:
        left = []
        for job in jobs:
            if job.name not in finished and set(job.needs) <= finished and job.done():
                finished.add(job.name)
            elif job.name not in finished:
                left.append(job)
        ready = [job for job in left if set(job.needs) <= finished and job.name not in failed]
        if not ready or late():
            return Outcome([job.name for job in left], failed)
        if not any(_attempt(job, claim, failed, tell, len(left)) for job in ready):
            time.sleep(WAIT)


def _attempt(job: Job, claim: Claim, failed: dict[str, Exception], tell: Callable[[str, int], None], left: int) -> bool:
    """Does a job unless another process is at it; False if one is."""
    with claim(job.name) as mine:
        if mine and not job.done():  # another process may have finished it in the meantime
            tell(job.name, left)
            try:
                job.work()
                if not job.done():
                    raise RuntimeError(f"{job.name} ended without the result that it was to make")
            except Exception as error:  # the caller raises it, once the others are done
                stop_if_received()
                failed[job.name] = error
        return mine


def check_jobs(jobs: Sequence[Job]) -> None:
    """Raises ValueError for names that are equal as file names, needs that no job meets, and circles."""
    names = [job.name for job in jobs]
    for name in names:
        same = [other for other in names if slug(other) == slug(name)]
        if len(same) > 1:
            raise ValueError(f"jobs {same} would share the file name {slug(name)!r}; give them names that differ in "
                             "letters or digits")
    before: set[str] = set()
    while len(before) < len(jobs):
        ready = {job.name for job in jobs if set(job.needs) <= before}
        if ready == before:
            stuck = {job.name: [need for need in job.needs if need not in before] for job in jobs
                     if job.name not in before}
            raise ValueError(f"these jobs wait for others that never come: {stuck}")
        before = ready


def slug(name: str) -> str:
    """A name as a file name: "MCTG n=4" -> "mctg-n-4"."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
