"""One table of several runs that differ in the seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np

from dforce.report.rows import Row


def same(row: Row) -> str:
    """A key that is equal for rows of different runs with the same method, variant and metric."""
    return json.dumps([row["method"], row["variant"], row["metric"]], sort_keys=True)


def over_seeds(runs: Iterable[Iterable[Row]]) -> Iterator[Row]:
    """One row for those that say the same in several runs, a run a seed: their mean, and its 95% t interval between the
    seeds; n is their sum. A row that one run alone has, or gives a value, keeps its own interval."""
    from scipy.stats import t

    groups: dict[str, list[Row]] = {}
    for run in runs:
        for row in run:
            groups.setdefault(same(row), []).append(row)
    for group in groups.values():
        values = np.array([row["value"] for row in group if row["value"] is not None])
        if len(values) < 2:
            yield next((row for row in group if row["value"] is not None), group[0])
            continue
        mean = float(values.mean())
        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        yield group[0] | {"value": mean, "low": mean - half, "high": mean + half, "n": sum(row["n"] for row in group),
                          "seeds": len(values)}
