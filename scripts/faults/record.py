"""What the fault injections measured, as rows of a results.json: shares of successes with Wilson's interval."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dforce.report.rows import Row, make_row, write_results
from dforce.report.statistics import wilson_interval
from dforce.runs.folder import environment, peak_memory_mb


def share(task: str, method: str, metric: str, outcomes: Iterable[bool], **variant: Any) -> Row:
    """The row of one metric: how many of the outcomes are true."""
    outcomes = list(outcomes)
    return make_row(task, method, metric, wilson_interval(sum(outcomes), len(outcomes)),
                    variant={**variant, "successes": sum(outcomes)}, unit="fraction", higher=True)


def write(out: str | Path, rows: list[Row], begin: float) -> None:
    """results.json at `out`, and a line a row on the terminal. begin: time.monotonic() of the start."""
    about = environment()
    header = {key: about[key] for key in ("command", "commit", "versions", "machine")}
    write_results(out, header | {"seconds": round(time.monotonic() - begin, 1), "peak_memory_mb": peak_memory_mb()},
                  rows)
    for row in rows:
        variant = ", ".join(f"{key} {value}" for key, value in row["variant"].items() if key != "successes")
        print(f"{row['metric']} ({variant}): {row['variant']['successes']} of {row['n']}, "
              f"95% [{row['low']:.3f}, {row['high']:.3f}]")
    print(f"written to {out}")
