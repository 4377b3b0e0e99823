"""Methods compared from the lines of their episodes: reports over seeds, aggregates, and differences start by start.

Everything here is made from the lines that `ScoreReport.episodes` writes.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from dforce.planning.scores import METRICS, ScoreReport
from dforce.report.rows import Row, difference_row, make_row
from dforce.report.statistics import interquartile_mean, probability_of_improvement, resampled

NAMES = {"seed", "episode", "blocked", "task", "method", *METRICS}
Key = tuple[str, str, str]  # task, method, variant as JSON


def pooled(lines: Iterable[Mapping[str, Any]]) -> dict[Key, ScoreReport]:
    """The episodes of each task, method and variant as one report, in the order of appearance, seeds side by side."""
    groups: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        variant = json.dumps({key: value for key, value in line.items() if key not in NAMES})
        groups[line["task"], line["method"], variant].append(line)
    reports = {}
    for key, episodes in groups.items():
        episodes = sorted(episodes, key=lambda line: (line["seed"], line["episode"]))
        values = {m: np.array([e[m] for e in episodes], float) for m in METRICS if m in episodes[0]}
        reports[key] = ScoreReport(values, np.array([e["seed"] for e in episodes]),
                                   np.array([e["blocked"] for e in episodes], bool))
    return reports


def common(a: ScoreReport, b: ScoreReport) -> tuple[ScoreReport, ScoreReport]:
    """The episodes that both played, by seed and number within the seed; ValueError if there are none.

    A method that played fewer episodes of a seed played the first of them.
    """
    where: tuple[list[int], list[int]] = [], []
    for seed in np.intersect1d(a.seed, b.seed):
        rows = [np.flatnonzero(report.seed == seed) for report in (a, b)]
        count = min(map(len, rows))
        for chosen, row in zip(where, rows, strict=True):
            chosen.extend(row[:count])
    if not where[0]:
        raise ValueError(f"nothing to compare: seeds {np.unique(a.seed)} and {np.unique(b.seed)} have none in common")
    cut = [ScoreReport({name: values[at] for name, values in report.values.items()}, report.seed[at],
                       report.blocked[at]) for report, at in zip((a, b), where, strict=True)]
    if (cut[0].blocked != cut[1].blocked).any():
        raise ValueError("the two methods did not start from the same places: other starts are blocked")
    return cut[0], cut[1]


def paired_rows(task: str, name: str, a: ScoreReport, b: ScoreReport) -> list[Row]:
    """a - b on the same starts with its interval, over all of them and over the blocked ones; also P(a > b).

    Of the score; where a maze has no reference scores, of the return and of the success rate, which OGBench reports.
    """
    a, b = common(a, b)
    metric = headline(a)
    rows = []
    for starts, mask in (("all", np.ones_like(a.blocked)), ("blocked", a.blocked)):
        if not mask.any():
            continue
        seed, variant = a.seed[mask], {"starts": starts}
        for each in (metric,) if metric == "score" else (metric, "success"):
            rows.append(difference_row(f"{task}, paired differences", name, each, a.values[each][mask],
                                       b.values[each][mask], seed, variant=variant, unit=f"{METRICS[each][0]}, paired"))
        better = probability_of_improvement(a.values[metric][mask], b.values[metric][mask], seed)
        rows.append(make_row(f"{task}, paired differences", name, "probability_of_improvement", better, variant=variant,
                             seeds=len(np.unique(seed)), unit="from the same start, ties half", higher=True))
    return rows


def headline(report: ScoreReport) -> str:
    """The metric that methods are compared by: score, or return where there are no reference scores."""
    return "score" if "score" in report.values else "return"


def headline_of(rows: Iterable[Row]) -> str:
    """The same of a task's rows of results."""
    return "score" if any(row["metric"] == "score" for row in rows) else "return"


def aggregate_rows(task: str, method: str, variant: Mapping[str, Any], report: ScoreReport) -> list[Row]:
    """The mean of the middle half of the episodes' scores, over all starts and the blocked ones.

    rliable (Agarwal et al. 2021) takes it over runs and tasks; of episodes it does not see fewer than a quarter fail.
    """
    metric = headline(report)
    rows = []
    for starts, mask in (("all", np.ones_like(report.blocked)), ("blocked", report.blocked)):
        if mask.any():
            estimate = resampled(interquartile_mean, report.values[metric][mask], report.seed[mask])
            rows.append(make_row(task, method, f"{metric}_iqm", estimate, variant={"starts": starts, **variant},
                                 seeds=len(np.unique(report.seed[mask])),
                                 unit=f"{METRICS[metric][0]}, middle half of the episodes", higher=True))
    return rows
