"""A policy server beside the program that asks it: for tests, studies and notebooks."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dforce.policy.server import PolicyServer


@contextmanager
def served_in_thread(server: PolicyServer, *, seconds: float = 60) -> Iterator[str]:
    """The address of a server that runs in a thread, on a free port of this machine, until the block ends.

    seconds: to wait for its start and for its end. TimeoutError where either takes longer.
    """
    there, running = threading.Event(), dict[str, Any]()

    def ready(port: int) -> None:
        running.update(port=port, loop=asyncio.get_running_loop(), task=asyncio.current_task())
        there.set()

    def run() -> None:
        try:
            asyncio.run(server.run("127.0.0.1", 0, ready))
        except asyncio.CancelledError:
            pass

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    if not there.wait(seconds):
        raise TimeoutError(f"the policy server did not start within {seconds} s")
    try:
        yield f"ws://127.0.0.1:{running['port']}"
    finally:
        running["loop"].call_soon_threadsafe(running["task"].cancel)
        thread.join(seconds)
        if thread.is_alive():
            raise TimeoutError(f"the policy server did not end within {seconds} s")
