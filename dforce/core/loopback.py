"""Who may ask a server on this machine: its address is the loopback one, and pages of other sites must not reach it."""

from collections.abc import Sequence
from typing import Any

HOST = "127.0.0.1"  # nobody but this machine
LOOPBACK = (HOST, "localhost", "[::1]")


def served_names(port: int, names: Sequence[str] = ()) -> list[str]:
    """The values of Host that are answered, in lower case. names: NAME or NAME:PORT, beside those of this machine."""
    every = [*LOOPBACK, *(name.lower() for name in names)]
    return [f"{name}:{port}" for name in every] + (every if port == 80 else every[len(LOOPBACK):])


def asks_for(names: Sequence[str], headers: Any) -> bool:
    """Are the one Host and every Origin of a request among these names?"""
    hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
    return len(hosts) == 1 and all(name.lower() in names for name in (*hosts, *(
        origin.partition("://")[2] for origin in origins)))
