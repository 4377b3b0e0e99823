"""One table of runs of `dforce align video` that differ in the seed: python scripts/studies/video/pool_align.py
OUT.json RUN...

All runs are judged on the same contexts in the same noise, so the base's rows are those of the first run. Means of the
tuned models and their paired differences are bootstrapped over seeds and, the same for all of them, over contexts.
Drift has no pairs: its rows are means over the seeds, from the lowest end of their intervals to the highest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from dforce.report.rows import read_episodes, read_results, write_results

DRAWS = 2000
Row = dict[str, Any]


def per_clip(run: Path, method: str, metric: str) -> np.ndarray:
    """[clips] in their order."""
    return np.array([line[metric] for line in read_episodes(run / "episodes.jsonl")
                     if line["method"] == method and "clip" in line])


def both_ways(values: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float, int]:
    """Mean of [seeds, clips], its 95% interval over seeds and clips, and how many numbers these are."""
    seeds, clips = values.shape
    drawn = [values[rng.integers(seeds, size=seeds)].mean(0)[rng.integers(clips, size=clips)].mean()
             for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(values.mean()), float(low), float(high), values.size


def short(row: Row, runs: list[Path], rng: np.random.Generator) -> Row:
    """A row of the tuned models' short videos, or of their difference to the base, over all runs."""
    metric = row["metric"].removesuffix("_difference")
    values = np.stack([per_clip(run, "tuned", metric) for run in runs])
    if row["metric"] != metric:
        values = values - np.stack([per_clip(run, "base", metric) for run in runs])
    return {**row, **dict(zip(("value", "low", "high", "n"), both_ways(values, rng), strict=True))}


def drift(same: list[Row]) -> Row:
    """One row of those of every run."""
    low, high = ([row[end] for row in same] for end in ("low", "high"))
    value = float(np.mean([row["value"] for row in same]))
    known = None not in low + high
    return {**same[0], "value": value, "n": sum(row["n"] for row in same), "low": min(low) if known else None,
            "high": max(high) if known else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    results, rng = [read_results(run / "results.json") for run in args.runs], np.random.default_rng(0)
    rows = []
    for row in results[0].rows:
        if not row["method"].startswith("tuned"):
            rows.append(row)
            continue
        same = [one for each in results for one in each.rows
                if all(one[key] == row[key] for key in ("method", "metric", "variant"))]
        if len(same) == len(results):
            pooled = short(row, args.runs, rng) if row["variant"]["sampling"] == "policy" else drift(same)
            rows.append({**pooled, "seeds": len(results)})
    headers = [each.header for each in results]
    header = {key: [each[key] for each in headers] for key in ("command", "commit", "seconds", "peak_memory_mb")}
    write_results(args.out, {**headers[0], **header}, rows)
    print(f"{args.out}: {len(rows)} rows of {len(args.runs)} runs")


if __name__ == "__main__":
    main()
