"""Claims by lock files: the processes of one machine that share a folder do each of its jobs once."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from dforce.runs.jobs import Claim, slug


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
        file.truncate(0)
        file.write(f"process {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield True


def claims_in(folder: Path) -> Claim:
    """The claim of jobs by lock files in `folder`, for `run_jobs`."""
    return partial(_claim, folder)


def _claim(folder: Path, name: str) -> AbstractContextManager[bool]:
    return locked(folder / f"{slug(name)}.lock")
