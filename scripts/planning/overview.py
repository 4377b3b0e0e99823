"""Who is ahead of whom on which task: the paired differences of several planning benchmarks in one picture.

python scripts/planning/overview.py docs/results/planning_*.json [--executor tracking] [--out FILE]

Differences are in percent of what the scripted controller, which knows the maze, has from the same starts: of the
score, or of the return where a maze has no reference scores, for only so are tasks beside one another. A file named
planning_<task>.json is a series; one whose run has no controller is left out, with a word.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dforce.report.forest import forest
from dforce.report.results import read_results, select
from dforce.report.study_plots import Estimate

COMPARED = ("MCTG n=4 - Diffuser", "MCTG n=4 - guided", "MCTG n=4 - full sequence matrix", "MCTD - MCTG n=4",
            "MCTG n=4 - controller")


def differences(file: Path, executor: str) -> dict[str, dict[str, Estimate]]:
    """Panel title -> comparison -> (difference, low, high) in percent of the controller's; {} without a controller."""
    rows = read_results(file).rows
    task = rows[0]["task"].partition(",")[0]
    metric = "score" if any(row["metric"] == "score" for row in rows) else "return"
    found: dict[str, dict[str, Estimate]] = {}
    for starts in ("all", "blocked"):
        controller = select(rows, task=task, method="controller", metric=metric, variant={"starts": starts})
        for name in COMPARED if controller else ():
            for row in select(rows, task=f"{task}, paired differences", method=f"{name}, {executor}",
                              metric=f"{metric}_difference", variant={"starts": starts}):
                share = 100 / controller[0]["value"]
                panel = found.setdefault(f"{starts} starts", {})
                panel[name] = (share * row["value"], share * row["low"], share * row["high"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--executor", default="tracking")
    parser.add_argument("--out", type=Path, default=Path("docs/img/planning_overview.png"))
    asked = parser.parse_args()
    panels: dict[str, dict[str, dict[str, Estimate]]] = {"all starts": {}, "blocked starts": {}}
    for file in asked.results:
        found = differences(file, asked.executor)
        if not found:
            print(f"{file}: no differences under {asked.executor} beside a controller, left out")
        for title, comparisons in found.items():
            for name in COMPARED:
                if name in comparisons:
                    series = panels[title].setdefault(name, {})
                    series[file.stem.removeprefix("planning_").replace("_", " ")] = comparisons[name]
    panels = {title: {name: panel[name] for name in COMPARED if name in panel} for title, panel in panels.items()}
    figure = forest(panels, xlabel="difference in % of the controller's",
                    title=f"Planners, executed by {asked.executor}")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(asked.out)
    print(f"wrote {asked.out}")


if __name__ == "__main__":
    main()
