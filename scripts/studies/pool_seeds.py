"""One table of several runs that differ in the seed: python scripts/studies/pool_seeds.py OUT.json RUN [RUN ...]

Reads results.json and episodes.jsonl of each run folder, bootstraps seeds first and episodes within them, and writes
rows and paired differences (the first --versus method minus each of the others) to OUT.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dforce.planning.evaluation import Key, difference, pooled
from dforce.planning.scores import ScoreReport
from dforce.report.rows import Row, read_episodes, read_results, write_results

EXECUTOR = ("executor", "gain_p", "gain_d", "hold", "arrive", "pace")


def reports(runs: list[Path]) -> dict[Key, ScoreReport]:
    """The episodes of all runs, run number as seed."""
    return pooled(line | {"seed": number} for number, run in enumerate(runs)
                  for line in read_episodes(run / "episodes.jsonl"))


def rows(together: dict[Key, ScoreReport], versus: str) -> list[Row]:
    """All rows, and the differences between first variants of methods."""
    found = [row for (task, method, variant), report in together.items()
             for row in report.rows(task=task, method=method, variant=json.loads(variant))]
    for (task, method, variant), report in together.items():
        for (_, other, other_variant), rival in together.items():
            own, its = json.loads(variant), json.loads(other_variant)
            # A driver has no executor: it meets them all.
            same = all(its.get(key, own.get(key)) == own.get(key) for key in EXECUTOR)
            if method == versus != other and same:
                named = {key: its[key] for key in its if key not in EXECUTOR}
                named |= {key: own[key] for key in ("hold", "pace")}
                found += [row | {"variant": named | row["variant"]}
                          for row in difference(task, f"{versus} - {other}", report, rival)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--versus", default="MCTG", help="method that the others are subtracted from")
    args = parser.parse_args()
    headers = [read_results(run / "results.json").header for run in args.runs]
    header = {key: [h[key] for h in headers] for key in ("command", "commit", "seconds", "peak_memory_mb")}
    write_results(args.out, {**headers[0], **header}, rows(reports(args.runs), args.versus))
    print(f"{args.out}: {len(args.runs)} runs")


if __name__ == "__main__":
    main()
