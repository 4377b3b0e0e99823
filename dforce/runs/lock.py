"""Locks by files, which end with their process: a run folder has one process at a time, or several that share it."""

import fcntl
import os
import platform
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = ".lock"
_held: set[tuple[int, Path]] = set()  # (process, folder)


@contextmanager
def occupied(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds an existing run folder inside `with`, again where this process does already; it ends with its process.

    shared: with others that share it, too. ValueError that names the process where another one holds it.
    """
    key = os.getpid(), folder.resolve()
    if key in _held or os.environ.get("RANK", "0") != "0":
        yield
        return
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise ValueError(f"{folder} is in use by {holder}: wait for its end, stop it, or choose another out="
                             ) from None
        except OSError as error:
            warnings.warn(f"the disk of {folder} knows no locks ({error}): let no other process use it", stacklevel=3)
        sign(file)
        _held.add(key)
        try:
            yield
        finally:
            _held.discard(key)


def sign(file: IO[str]) -> None:
    """Writes into a lock file who holds it."""
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    file.flush()
