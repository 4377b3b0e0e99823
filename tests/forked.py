"""A process of its own for a test that kills one or needs several: forked, so that no library is loaded twice."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any


def forked(run: Callable[[], Any], **environ: str) -> int:
    """Calls `run` in a fork with these environment variables; the id of that process, which exits with 0, or 70 where
    `run` raised."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.environ.update(environ)
        run()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(process: int) -> int:
    """Waits for a forked process: its exit code, minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
