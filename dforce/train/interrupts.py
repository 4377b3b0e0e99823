"""Ctrl-C and SIGTERM: which one came is remembered, so that no handler of errors on the way can make it another."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _Command:
    """signals: those that the present command got, in order; None while there is no command."""

    signals: list[int] | None = None


def received() -> int | None:
    """The signal that asked the present command to stop, None while none has."""
    return _Command.signals[0] if _Command.signals else None


def is_stop(error: BaseException | None) -> bool:
    """Does an error end a command because it was asked to stop, whatever a library made of the interrupt?"""
    return isinstance(error, KeyboardInterrupt) or (error is not None and received() is not None)


def stop_if_received() -> None:
    """KeyboardInterrupt where a signal came: for handlers that would turn it into an error of a file."""
    if received() is not None:
        raise KeyboardInterrupt


@contextmanager
def handled(handle: Callable[[int, Any], None], *signals: signal.Signals) -> Iterator[None]:
    """Inside, `handle` is called for the signals, after they are remembered. Nothing outside of the main thread."""

    def remembered(number: int, frame: Any) -> None:
        if _Command.signals is not None:
            _Command.signals.append(number)
        handle(number, frame)

    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, remembered) for number in signals} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT and SIGTERM raise KeyboardInterrupt, and `received` tells which came."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with handled(stop, signal.SIGINT, signal.SIGTERM):
        _Command.signals = []
        try:
            yield
        finally:
            _Command.signals = None
