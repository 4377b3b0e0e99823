"""`dforce benchmark speed`: how fast this installation is on this machine, against the official structure."""

from typing import Any

from dforce.benchmarks.speed.benchmark import SpeedBenchmark
from dforce.config import read
from dforce.report.terminal import terminal_table
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Runs the parts and prints their tables."""
    benchmark = read(cfg, SpeedBenchmark)
    with call.folder() as folder:
        rows = benchmark.measure(folder)
        if folder.writes:
            print(terminal_table(rows), flush=True)
