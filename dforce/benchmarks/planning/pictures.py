"""The pictures of a planning benchmark, into its media folder, from its rows and from what its shards kept."""

from pathlib import Path
from typing import Any

import numpy as np

from dforce.benchmarks.planning.benchmark import PlanningBenchmark
from dforce.benchmarks.planning.suite import MethodNode, split_label
from dforce.planning.evaluation import headline_of
from dforce.planning.pictures import on_paper, reach
from dforce.report.plots import style
from dforce.report.plots.benchmark import Estimate, Paths, Point, forest, same_starts, sweep_panels
from dforce.report.plots.curves import bars_with_intervals
from dforce.report.rows import Row, filter_rows

STARTS = 3  # shown of each method
REFERENCES = ("random", "straight", "controller")
CAPTIONS = {
    "starts.png": "Every method on the same starts (training seed 0, its first executor): the plan coloured by time, "
                  "the executed path dark, below it the steps spent at the goal.",
    "scale.png": "Tuning: the score over the guidance scale, on starts that are not reported.",
    "learning.png": "The score over training, of one training seed on its first reported starts.",
    "differences.png": "Paired differences, start by start, with 95% intervals; filled: the interval leaves zero out.",
    "compute.png": "The score over what it costs to decide an episode; many episodes are planned together.",
}


def draw_benchmark(bench: PlanningBenchmark, rows: list[Row], media: Path) -> dict[str, str]:
    """Draws what the rows allow; returns the captions, by file name, in the order of the page."""
    of_task = [row for row in rows if row["task"] == bench.task.name]
    metric = headline_of(of_task)
    figures: dict[str, Any] = {}
    captions = dict(CAPTIONS)
    for executor in bench.suite.executors:
        shown = [row for row in of_task if row["variant"].get("executor") in (executor, "its own")]
        if any(row["metric"] == metric and row["method"] not in REFERENCES for row in shown):
            figures[f"score {executor}.png"] = bars_with_intervals(
                shown, metric, references=REFERENCES[1:], title=f"{bench.task.name}, executed by {executor}")
            captions[f"score {executor}.png"] = (
                f"Scores with 95% intervals, plans executed by {executor}; dashed: reference drivers.")
    figures["starts.png"] = starts_figure(bench)
    for name, curve in bench.suite.curves.items():
        figures[f"curve {name}.png"] = curve_figure(bench, of_task, metric, curve["over"], curve["methods"])
        captions[f"curve {name}.png"] = f"The score over {name}, each point at its own tuned settings."
    figures["differences.png"] = differences_figure(bench, rows, metric)
    figures["compute.png"] = compute_figure(bench, of_task, metric)
    figures["scale.png"] = variant_figure(bench, rows, metric, "tuning", "scale", "guidance scale", log_x=True)
    figures["learning.png"] = variant_figure(bench, rows, metric, "over training", "step", "training steps")
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        figure.savefig(media / name)
    return {name: captions[name] for name in drawn}


def starts_figure(bench: PlanningBenchmark) -> Any:
    """All methods on the first blocked starts of seed 0 that all of them played; None where there are none."""
    kept: dict[str, dict[str, np.ndarray]] = {}
    for method in bench.suite.methods.values():
        file = bench.shard_file(method.name, 0).with_suffix(".npz")
        if file.is_file():
            with np.load(file) as arrays:
                kept[_named(method)] = {name: arrays[name] for name in arrays.files}
    if not kept:
        return None
    episodes = [one["episode"].astype(int).tolist() for one in kept.values()]
    shown = [e for e in episodes[0] if all(e in other for other in episodes)][:STARTS]
    if not shown:
        return None
    seen = {}
    for name, numbers in zip(kept, episodes, strict=True):
        arrays = {key: values[[numbers.index(e) for e in shown]] for key, values in kept[name].items()}
        path = on_paper(bench.task.maze, arrays["path"])
        plan = on_paper(bench.task.maze, arrays["plan"]) if "plan" in arrays else None
        seen[name] = Paths(path, plan, [f"{value:.0f} steps" for value in arrays["returns"]])
    starts, goals = path[:, 0], on_paper(bench.task.maze, arrays["goal"])
    return same_starts(bench.task.maze.walls, seen, starts, goals,
                       title=f"{bench.task.name}:\nall methods from the same starts", reach=reach(bench.task.maze))


def _named(method: MethodNode) -> str:
    return f"{method.name}, {method.executors[0]}" if method.executors else method.name


def score_figure(bench: PlanningBenchmark, rows: list[Row], metric: str, series: dict[str, dict[str, float]],
                 xlabel: str, over: str) -> Any:
    """The score of all starts and of blocked ones; series: name -> method label -> x. None where nothing is there."""
    shown = {}
    for starts in ("all", "blocked"):
        scored = [row for row in filter_rows(rows, metric=metric, variant={"starts": starts})
                  if row["value"] is not None]
        lines = {name: [Point(x[row["method"]], row["value"] or 0.0, row["low"], row["high"]) for row in scored
                        if row["method"] in x] for name, x in series.items()}
        if any(lines.values()):
            shown[f"{starts} starts"] = {name: line for name, line in lines.items() if line}
    return sweep_panels(shown, xlabel=xlabel, ylabel=metric, log_x=True, references=reference_scores(rows, metric),
                        title=f"{bench.task.name}: {metric} over {over}") if shown else None


def reference_scores(rows: list[Row], metric: str) -> dict[str, dict[str, float]]:
    return {f"{starts} starts": {row["method"]: row["value"] for row in
                                 filter_rows(rows, metric=metric, method=REFERENCES[1:], variant={"starts": starts})
                                 if row["value"] is not None}
            for starts in ("all", "blocked")}


def curve_figure(bench: PlanningBenchmark, rows: list[Row], metric: str, over: str, methods: list[str]) -> Any:
    """The score of several methods over a setting of theirs, a line an executor."""
    series: dict[str, dict[str, float]] = {}
    for row in filter_rows(rows, metric=metric):
        name, executor = split_label(row["method"])
        if name in methods and over in row["variant"]:
            series.setdefault(executor, {})[row["method"]] = row["variant"][over]
    return score_figure(bench, rows, metric, series, over, over)


def compute_figure(bench: PlanningBenchmark, rows: list[Row], metric: str) -> Any:
    """The score over the seconds of deciding an episode, under the first executor; methods of a curve are one line."""
    played = {split_label(row["method"])[0] for row in rows}
    joined: dict[str, str] = {}
    for curve in bench.suite.curves.values():
        there = [method for method in curve["methods"] if method in played]
        if len(there) > 1:
            joined |= dict.fromkeys(there, f"{there[0]} to {there[-1]}")
    series: dict[str, dict[str, float]] = {}
    for row in filter_rows(rows, metric="episode_seconds"):
        method, executor = split_label(row["method"])
        if method not in REFERENCES and executor == (*bench.suite.methods[method].executors, "")[0]:
            series.setdefault(joined.get(method, method), {})[row["method"]] = float(row["value"] or 0.0)
    return score_figure(bench, rows, metric, series, "seconds of deciding, an episode", "compute")


def differences_figure(bench: PlanningBenchmark, rows: list[Row], metric: str) -> Any:
    """All paired differences of the suite, a line an executor; None where there are none."""
    shown: dict[str, dict[str, dict[str, Estimate]]] = {}
    for row in filter_rows(rows, task=f"{bench.task.name}, paired differences", metric=f"{metric}_difference"):
        comparison, executor = split_label(row["method"])
        if not executor or split_label(comparison)[1] or len(bench.suite.executors) >= len(style.PALETTE):
            # Of two executors, of none, or of more than there are colours for.
            comparison, executor = row["method"], "as named"
        panel = shown.setdefault(f"{row['variant']['starts']} starts", {})
        if row["value"] is not None and row["low"] is not None and row["high"] is not None:
            panel.setdefault(comparison, {})[executor] = (row["value"], row["low"], row["high"])
    return forest(shown, xlabel=f"difference of {metric}",
                  title=f"{bench.task.name}: paired differences") if shown else None


def variant_figure(bench: PlanningBenchmark, rows: list[Row], metric: str, stage: str, over: str, xlabel: str, *,
                   log_x: bool = False) -> Any:
    """A curve a method over a key of the variants, under its first executor; None where no row of the stage has it."""
    shown: dict[str, dict[str, list[Point]]] = {}
    for row in filter_rows(rows, task=f"{bench.task.name}, {stage}", metric=metric):
        name, executor = split_label(row["method"])
        first = (*bench.suite.methods[name].executors, "")[0]
        if executor == first and over in row["variant"] and row["value"] is not None:
            panel = shown.setdefault(f"{row['variant']['starts']} starts", {})
            panel.setdefault(name, []).append(Point(row["variant"][over], row["value"], row["low"], row["high"]))
    title = f"{bench.task.name}, {stage}: {metric} over {xlabel}"
    return sweep_panels(shown, xlabel=xlabel, ylabel=metric, title=title, log_x=log_x) if shown else None
