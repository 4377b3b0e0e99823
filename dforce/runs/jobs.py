"""A graph of jobs. A job is a function of files: it reads those that its needs made, and ends in files of its own.

Nothing in a graph says where or by whom it is run: `run_jobs` does it in this process, and shares it with others by its
`claim`. An engine for clusters would submit each job after those it needs; a job pickles if `done` and `work` do.
"""

import fcntl
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from dforce.runs.lock import sign
from dforce.train.interrupts import stop_if_received

WAIT = 2.0  # seconds between looks at jobs that other processes have claimed


class Job(NamedTuple):
    """One piece of work."""

    name: str  # unlike all others
    needs: tuple[str, ...]  # names of the jobs whose results it reads
    done: Callable[[], bool]  # is the result there, whole, of the present settings? Asked once `needs` are done
    work: Callable[[], None]  # makes the result, and leaves nothing half written


def run_is_done(folder: Path) -> bool:
    """Has the run in this folder come to its end? What a job asks whose result is a run folder."""
    status = folder / "STATUS"
    return status.is_file() and status.read_text(encoding="utf-8", errors="replace").strip() == "done"


class Stopped(Exception):
    """Raised by work that kept its progress and can be continued later."""


class Outcome(NamedTuple):
    """left: names of the jobs that are not done. failed: error of each job that failed, or was `Stopped`, here."""

    left: list[str]
    failed: dict[str, Exception]


Claim = Callable[[str], AbstractContextManager[bool]]
"""with claim(name) as mine: True while this process alone may do the job of that name, False if another one does it."""


def run_jobs(jobs: Sequence[Job], claim: Claim = lambda name: nullcontext(True), *,
             late: Callable[[], bool] = lambda: False, tell: Callable[[str, int], None] = lambda name, left: None,
             ) -> Outcome:
    """Does every job that is not done, in order as far as needs allow. One that fails is left; the others go on.

    claim: shares the jobs; where others hold all that can be done, this process waits, and takes over what they drop.
    late: asked before each job; once true, no other begins. tell(name, jobs left): called before each done here.
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
            raise ValueError(f"jobs {same} would share the file name {slug(name)!r}: rename by letters or digits")
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


@contextmanager
def locked(lock: Path, *, wait: bool = False) -> Iterator[bool]:
    """Holds a lock file inside `with`; False at once (unless `wait`) where another does. It ends with its process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        sign(file)
        yield True


def claims_in(folder: Path) -> Claim:
    """The claim of jobs by lock files in `folder`, for `run_jobs`."""
    return lambda name: locked(folder / f"{slug(name)}.lock")
