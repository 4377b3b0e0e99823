"""The rows of a planning benchmark, from the files of its jobs and from nothing else."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from dforce.benchmarks.planning.benchmark import PlanningBenchmark, read_evaluation, read_tuning
from dforce.benchmarks.planning.learning import learning_rows
from dforce.benchmarks.planning.suite import MethodNode, Suite, label, side
from dforce.planning.cost import Cost, plan_cost_rows
from dforce.planning.evaluation import Key, aggregate_rows, headline, paired_rows, pooled
from dforce.planning.scores import ScoreReport
from dforce.report.rows import Row, make_row
from dforce.runs.shards import Shard

MAIN = ("score", "score_iqm", "return", "success", "leaps", "in_wall", "raw_leaps", "raw_in_wall", "score_latched",
        "return_latched", "first_reach")
COSTS = ("plan_seconds", "plan_tokens", "episode_seconds")


class PlanningTables(NamedTuple):
    """rows, of results.json; lines, of episodes.jsonl; costs, one a method, executor and seed."""

    rows: list[Row]
    lines: list[dict[str, Any]]
    costs: list[dict[str, Any]]


def planning_tables(bench: PlanningBenchmark) -> PlanningTables:
    """All results there are by now: scores, aggregates, times, paired differences, and every trial of the tunings."""
    shards = list(evaluations(bench))
    lines = [line for shard in shards for line in shard.lines]
    costs = [{**cost, "seed": shard.header["seed"]} for shard in shards for cost in shard.header["costs"]]
    reports = pooled(lines)
    rows = score_rows(reports) + cost_rows(bench.task.name, costs)
    rows += pair_rows(bench.suite, bench.task.name, {method: report for (_, method, _), report in reports.items()})
    return PlanningTables(rows + learning_rows(bench) + tuning_rows(bench), lines, costs)


def sections(rows: list[Row]) -> list[tuple[str, list[Row]]]:
    """(title, rows) of the tables that people read: scores, costs, differences, tuning."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    tables = []
    for task in tasks:
        of_task = [row for row in rows if row["task"] == task]
        if task != tasks[0]:
            tables.append((task, of_task))
            continue
        for name, metrics in ((task, MAIN), (f"{task}, what it costs", COSTS)):
            chosen = sorted((row for row in of_task if row["metric"] in metrics),
                            key=lambda row: metrics.index(row["metric"]))
            tables += [(name, chosen)] if chosen else []
    return tables


def evaluations(bench: PlanningBenchmark) -> Iterator[Shard]:
    for method in bench.suite.methods.values():
        for seed in bench.suite.runs(method):
            shard = read_evaluation(bench, method, seed)
            if not isinstance(shard, str):
                yield shard


def score_rows(reports: dict[Key, ScoreReport]) -> list[Row]:
    """Every metric and the interquartile mean of every method."""
    rows = []
    for (task, method, variant), report in reports.items():
        named = json.loads(variant)
        rows += report.rows(task=task, method=method, variant=named)
        rows += aggregate_rows(task, method, named, report)
    return rows


def cost_rows(task: str, costs: list[dict[str, Any]]) -> list[Row]:
    """plan_seconds and plan_tokens where plans are made, and episode_seconds of all that a method decides."""
    rows = []
    for method in dict.fromkeys(cost["method"] for cost in costs):
        of_method = [cost for cost in costs if cost["method"] == method]
        seconds, episodes = (sum(cost[key] for cost in of_method) for key in ("seconds", "episodes"))
        many = f"{of_method[0]['episodes']} at once"
        rows.append(make_row(task, method, "episode_seconds", seconds / episodes, n=episodes, unit=f"s of deciding an "
                             f"episode, {many}", variant=of_method[0]["variant"], seeds=len(of_method), higher=False))
        rows += plan_cost_rows(task, method, of_method[0]["variant"],
                               [Cost(cost["plans"], cost["seconds"], cost["tokens"]) for cost in of_method], many)
    return rows


def pair_rows(suite: Suite, task: str, reports: dict[str, ScoreReport]) -> list[Row]:
    """Paired differences of the suite's pairs, of those whose episodes are there."""
    return [row for a, b in suite.pairs for name, left, right in meetings(suite, a, b)
            if left in reports and right in reports for row in paired_rows(task, name, reports[left], reports[right])]


def meetings(suite: Suite, a: str, b: str) -> Iterator[tuple[str, str, str]]:
    """(name of the difference, label of a, label of b): under one executor each, the same where none is named."""
    (first, one), (second, other) = side(a), side(b)
    left, right = suite.methods[first], suite.methods[second]
    for executor in [one] if one else left.executors or ("",):
        for its in [other] if other else _same(right, executor, free=not left.executors):
            same = executor == its or not (executor and its)
            left_label, right_label = label(first, executor), label(second, its)
            name = label(f"{first} - {second}", executor or its) if same else f"{left_label} - {right_label}"
            yield name, left_label, right_label


def _same(method: MethodNode, executor: str, *, free: bool) -> tuple[str, ...]:
    """The executors of the other side: the same one; all of them against a driver; none for a driver."""
    if not method.executors:
        return ("",)
    return method.executors if free else tuple(name for name in method.executors if name == executor)


def tuning_rows(bench: PlanningBenchmark) -> list[Row]:
    """The score of every trial of every tuned method, and which was chosen; under a task name of their own."""
    rows: list[Row] = []
    for method in bench.suite.methods.values():
        shard = read_tuning(bench, method) if isinstance(method.tune, dict) else ""
        if isinstance(shard, str):
            continue
        reports = pooled(shard.lines)
        for trial in shard.header["trials"]:
            settings = {**trial["settings"], "chosen": trial["settings"] == shard.header["chosen"]}
            matching = [(name, report) for (_, name, variant), report in reports.items()
                        if trial["settings"].items() <= json.loads(variant).items()]
            for name, report in matching:
                metric = headline(report)
                rows += [row for row in report.rows(task=f"{bench.task.name}, tuning", method=name, variant=settings)
                         if row["metric"] == metric]
            if not matching:
                rows.append(make_row(f"{bench.task.name}, tuning", method.name, "score", None, n=0, variant=settings,
                                     unit="plans were not finite", higher=True))
    return rows

