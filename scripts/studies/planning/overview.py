"""Several planning benchmarks beside one another: paired differences in one picture, all methods in one table.

python scripts/studies/planning/overview.py RESULTS [RESULTS ...] [--executor tracking] [--picture FILE] [--out FILE]

RESULTS: results.json of runs of `dforce benchmark planning`, or [NAME=]FILE to call a task otherwise. Differences are
in percent of what the scripted controller, which knows the maze, has above random driving from such starts, for only so
do tasks stand beside one another. The intervals are those of the differences; the controller's own is left out of them.
The table, --out, holds the score of every method on every task, or the return where a task has no scores; where a
method was not run there is none.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

from findings import write

from dforce.benchmarks.planning.suite import label, split_label
from dforce.planning.evaluation import headline_of
from dforce.report.plots.benchmark import Estimate, forest
from dforce.report.rows import Row, filter_rows, read_results

COMPARED = ("MCTG n=4 - Diffuser", "MCTG n=4 - guided", "MCTG n=4 - full sequence matrix", "MCTD - MCTG n=4",
            "MCTG n=4 - controller")


class Run(NamedTuple):
    """The rows of a run, its task, and the metric by which its methods are compared."""

    rows: list[Row]
    task: str
    metric: str


def read(file: Path) -> Run:
    rows = read_results(file).rows
    return Run(rows, rows[0]["task"].partition(",")[0], headline_of(rows))


def differences(run: Run, executor: str) -> dict[str, dict[str, Estimate]]:
    """Panel title -> comparison -> (difference, low, high) in percent of the controller's.

    ValueError where the run lacks the controller, random driving (a score has its 0), or differences by that executor.
    """
    rows, task, metric = run
    paired = filter_rows(rows, task=f"{task}, paired differences", metric=f"{metric}_difference")
    if not any(split_label(row["method"])[1] == executor for row in paired):
        there = filter(None, dict.fromkeys(split_label(row["method"])[1] for row in paired))
        raise ValueError(f"no differences under {executor!r}; there are {', '.join(there) or 'none at all'}")
    found: dict[str, dict[str, Estimate]] = {}
    for starts in dict.fromkeys(row["variant"]["starts"] for row in paired):
        of = {row["method"]: row["value"]
              for row in filter_rows(rows, task=task, metric=metric, variant={"starts": starts})
              if row["value"] is not None}
        if "controller" not in of or not (metric == "score" or "random" in of):
            raise ValueError(f"percent take the methods controller and random; it has {', '.join(of)}")
        share = 100 / (of["controller"] - (0 if metric == "score" else of["random"]))
        for name in COMPARED:
            for row in filter_rows(paired, method=label(name, executor), variant={"starts": starts}):
                panel = found.setdefault(f"{starts} starts", {})
                if row["value"] is not None and row["low"] is not None and row["high"] is not None:
                    panel[name] = (share * row["value"], share * row["low"], share * row["high"])
    return found


def scores(run: Run, name: str, executor: str) -> list[Row]:
    """The score, or return, of every method by that executor or by none, under the metric `name` of one common task."""
    rows, task, metric = run
    return [{**row, "task": "planning", "method": split_label(row["method"])[0], "metric": name,
             "variant": {"starts": row["variant"]["starts"]}}
            for row in filter_rows(rows, task=task, metric=metric)
            if row["variant"]["executor"] in (executor, "its own")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="[NAME=]FILE")
    parser.add_argument("--executor", default="tracking")
    parser.add_argument("--picture", type=Path, default=Path("docs/img/planning_overview.png"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/planning_overview.json"))
    asked, begin, rows = parser.parse_args(), time.monotonic(), []
    panels: dict[str, dict[str, dict[str, Estimate]]] = {}
    seen: dict[str, str] = {}
    for word in asked.results:
        name, _, file = word.rpartition("=")
        try:
            run = read(Path(file))
            found = differences(run, asked.executor)
        except (OSError, ValueError) as error:
            parser.error(f"{file}: {error}")
        name = name or run.task
        if name in seen:
            parser.error(f"{seen[name]} and {file} are both {name}: give one another name, NAME={file}")
        seen[name] = file
        rows += scores(run, name, asked.executor)
        for title, comparisons in found.items():
            for comparison, estimate in comparisons.items():
                panels.setdefault(title, {}).setdefault(comparison, {})[name] = estimate
    panels = {title: {name: panel[name] for name in COMPARED if name in panel} for title, panel in panels.items()}
    asked.picture.parent.mkdir(parents=True, exist_ok=True)
    figure = forest(panels, xlabel="% of the controller's", title=f"Planners, executed by {asked.executor}")
    figure.savefig(asked.picture)
    write(asked.out, rows, begin)
    print(f"wrote {asked.picture} and {asked.out}")


if __name__ == "__main__":
    main()
