"""One table of runs of `dforce align video` that differ in the seed: python scripts/studies/video/pool_align.py
OUT.json RUN...

All runs are judged on the same contexts in the same noise, so the base's rows are those of the first run. Means of the
tuned models and their paired differences are bootstrapped over seeds and, the same for all of them, over contexts.
Drift has no pairs: its rows are means over the seeds, from the lowest end of their intervals to the highest.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from dforce.report.rows import Row, make_row, read_episodes, read_results, write_results
from dforce.report.statistics import Interval, spread_interval

DRAWS = 2000


def per_clip(run: Path, method: str, metric: str) -> np.ndarray:
    """[clips] in their order."""
    return np.array([line[metric] for line in read_episodes(run / "episodes.jsonl")
                     if line["method"] == method and "clip" in line])


def both_ways(values: np.ndarray, rng: np.random.Generator) -> Interval:
    """Mean of [seeds, clips], its 95% interval over seeds and clips, and how many numbers these are."""
    seeds, clips = values.shape
    drawn = [values[rng.integers(seeds, size=seeds)].mean(0)[rng.integers(clips, size=clips)].mean()
             for _ in range(DRAWS)]
    return spread_interval(np.array(drawn))._replace(value=float(values.mean()), n=values.size)


def pooled(row: Row, estimate: Interval | float, n: int, seeds: int) -> Row:
    """The row of one run with the estimate of several."""
    return make_row(row["task"], row["method"], row["metric"], estimate, n=n, variant=row["variant"], seeds=seeds,
                    unit=row["unit"], higher=row["higher_is_better"])


def short(row: Row, runs: list[Path], rng: np.random.Generator) -> Row:
    """A row of the tuned models' short videos, or of their difference to the base, over all runs."""
    metric = row["metric"].removesuffix("_difference")
    values = np.stack([per_clip(run, "tuned", metric) for run in runs])
    if row["metric"] != metric:
        values = values - np.stack([per_clip(run, "base", metric) for run in runs])
    interval = both_ways(values, rng)
    return pooled(row, interval, interval.n, len(runs))


def drift(same: list[Row]) -> Row:
    """One row of those of every run: the mean, from the lowest end of their intervals to the highest."""
    value, n = float(np.mean([row["value"] for row in same if row["value"] is not None])), sum(row["n"] for row in same)
    lows, highs = ([end for row in same if (end := row[key]) is not None] for key in ("low", "high"))
    known = len(lows) == len(highs) == len(same)
    return pooled(same[0], Interval(value, min(lows), max(highs), n) if known else value, n, len(same))


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
            rows.append(short(row, args.runs, rng) if row["variant"]["sampling"] == "policy" else drift(same))
    headers = [each.header for each in results]
    header = {key: [each[key] for each in headers] for key in ("command", "commit", "seconds", "peak_memory_mb")}
    write_results(args.out, {**headers[0], **header}, rows)
    print(f"{args.out}: {len(rows)} rows of {len(args.runs)} runs")


if __name__ == "__main__":
    main()
