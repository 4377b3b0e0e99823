"""What the studies beside this one leave: results.json with its header, and a line a row on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dforce.planning.scores import METRICS
from dforce.report.rows import Row, make_row, write_results
from dforce.report.statistics import success_interval
from dforce.runs.folder import environment, results_header

HIDDEN = METRICS.keys() - {"score", "success", "leaps", "in_wall"}  # of a score report, only in the file


def write(out: Path, rows: Sequence[Row], begin: float) -> None:
    """results.json at `out`. begin: time.monotonic() of the start."""
    write_results(out, results_header(environment(), round(time.monotonic() - begin, 1)), rows)


def tell(rows: Iterable[Row]) -> None:
    """A line for each row that a reader looks for first."""
    for row in rows:
        if row["metric"] not in HIDDEN:
            named = ", ".join(f"{key} {value}" for key, value in row["variant"].items())
            print(f"{row['method']:45} {row['metric']:13}{row['value']:9.3f} [{row['low']:.3f}, {row['high']:.3f}]  "
                  f"{named}", flush=True)


def shares(task: str, method: str, variant: Mapping[str, Any], kinds: Iterable[str],
           runs: Sequence[Sequence[str]]) -> Iterator[Row]:
    """The share of each kind in all runs, a row each. runs: the kinds that came out, one list a training seed."""
    seed = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    for kind in kinds:
        are = np.array([float(one == kind) for run in runs for one in run])
        yield make_row(task, method, kind, success_interval(are, seed, rng=np.random.default_rng(0)), variant=variant,
                       seeds=len(runs), unit="fraction")
