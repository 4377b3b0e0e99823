"""The rows and pictures of `dforce benchmark align`, from the files of its runs and from nothing else."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dforce.benchmarks.align.runs import BASE, AlignBenchmark, Part
from dforce.report import statistics
from dforce.report.plots.benchmark import Mark, Point, frontier, sweep_panels
from dforce.report.rows import Row, filter_rows, make_row
from dforce.report.statistics import Interval, bootstrap_interval, normal_interval, paired_difference, success_interval
from dforce.runs.shards import Shard

UNITS = {"jpeg": "minus kB of a JPEG (quality 95, 64 pixels)", "class": "log p(class), nats"}
METRICS: dict[str, tuple[str, bool | None]] = {  # metric: (unit, higher is better); the reward's unit is the task's
    "reward": ("", True),
    "gain": ("reward over the model before, same noise", True),
    "accuracy": ("share seen as their class by a classifier that is no reward", True),
    "diversity": ("share of that of the model before; near 1 is as before", None),
    "kl": ("nats to the model before; of best-of-n its bound", None),
    "queries": ("rewards asked for to have 100 samples, in tuning or searching", None),
    "seconds": ("s of one core for that", None),
}
DELIVERED = 100  # samples that queries and seconds are counted for


class AlignTables(NamedTuple):
    """What goes into the run folder."""

    rows: list[Row]              # of results.json
    lines: list[dict[str, Any]]  # of episodes.jsonl


class Runs(NamedTuple):
    """All seeds of one method on one task, and the model before on the same samples."""

    seeds: list[int]
    shards: list[Shard]
    bases: list[Shard]

    def values(self, key: str, *, base: bool = False, only: Sequence[int] | None = None,
               other: Sequence[int] = ()) -> np.ndarray:
        """[all samples] of the seeds one after the other; only, other: of these classes, of none of those."""
        return np.array([line[key] for shard, before in zip(self.shards, self.bases, strict=True)
                         for line in (before if base else shard).lines[:len(shard.lines)]
                         if (only is None or line["label"] in only) and line["label"] not in other], dtype=float)

    def seed(self, **which: Any) -> np.ndarray:
        return np.concatenate([np.full(len(Runs([s], [shard], [before]).values("label", **which)), s)
                               for s, shard, before in zip(self.seeds, self.shards, self.bases, strict=True)])


def align_tables(bench: AlignBenchmark) -> AlignTables:
    """Scores, generalisation, curves and trials of all that is there by now."""
    rows, lines = [], []
    for task in bench.tasks:
        for method in ("base", *bench.methods_of(task)):
            parts = bench.parts(method)
            reported = [part for part in parts if part.trial is None and part.seed != bench.tune_seed]
            for classes in dict.fromkeys(part.classes for part in reported):
                same = [part for part in reported if part.classes == classes]
                runs = gathered(bench, task, method, same)
                if not runs.shards:
                    continue
                rows += (scores(task, method, runs) + curves(task, method, runs) if classes is None else [])
                if classes is not None or (method in bench.spread_methods and bench.spread):
                    rows += generalisation(task, method, runs, classes, bench.spread)
                lines += [{"task": task, "method": method, "tuned_on": classes, "seed": seed, **line}
                          for seed, shard in zip(runs.seeds, runs.shards, strict=True) for line in shard.lines]
            rows += trials(bench, task, method, [part for part in parts if part.trial is not None])
    return AlignTables(rows, lines)


def gathered(bench: AlignBenchmark, task: str, method: str, parts: Iterable[Part]) -> Runs:
    results = [(part.seed, bench.read(task, method, part), bench.read(task, BASE, Part(part.seed))) for part in parts]
    whole = [(s, shard, base) for s, shard, base in results if isinstance(shard, Shard) and isinstance(base, Shard)]
    return Runs([s for s, _, _ in whole], [shard for _, shard, _ in whole], [base for _, _, base in whole])


def align_row(task: str, method: str, variant: dict[str, Any], metric: str, estimate: Interval | float, seeds: int,
              n: int | None = None) -> Row:
    """A row of METRICS; of a reward the unit is the task's. n: beside a number that has no interval."""
    name = metric.split()[0]
    unit, higher = METRICS.get(name, ("", None))
    unit = UNITS.get(task.split(",")[0], "") if name == "reward" else unit
    return make_row(task, method, metric, estimate, n=n, variant=variant, seeds=seeds, unit=unit, higher=higher)


def scores(task: str, method: str, runs: Runs) -> list[Row]:
    """What a method comes to, with 95% intervals: over seeds, then samples."""
    seed, rng, many = runs.seed(), np.random.default_rng(0), len(runs.seeds)
    intervals = {
        "reward": bootstrap_interval(runs.values("reward"), seed, rng=rng),
        "gain": paired_difference(runs.values("reward"), runs.values("reward", base=True), seed),
        "accuracy": success_interval(runs.values("right") > 0, seed, rng=rng), "diversity": diversity_share(runs)}
    if all(line["kl"] is not None for shard in runs.shards for line in shard.lines):
        intervals["kl"] = bootstrap_interval(runs.values("kl"), seed, rng=rng)
    rows = [align_row(task, method, {}, metric, estimate, many) for metric, estimate in intervals.items()]
    costs = {"queries": [shard.header["queries"] + DELIVERED * shard.header["a_sample"] for shard in runs.shards],
             "seconds": [shard.header["work_seconds"] for shard in runs.shards]}
    return rows + [align_row(task, method, {}, metric, float(np.mean(values)), many, many)
                   for metric, values in costs.items()]


def diversity_share(runs: Runs) -> Interval:
    """The mean over seeds of the share of diversity left; its variance is that between seeds plus that of each."""
    share, within = [], []
    for shard, base in zip(runs.shards, runs.bases, strict=True):
        now, before = shard.header["summary"], base.header["summary"]["diversity"]
        share.append(now["diversity"] / before)
        known = now["diversity_low"] is not None
        width = now["diversity_high"] - now["diversity_low"] if known else math.nan
        within.append((width / 2 / statistics.Z95 / before) ** 2)
    between = float(np.var(share, ddof=1)) if len(share) > 1 else 0.0
    error = ((between + float(np.mean(within))) / len(share)) ** 0.5
    return normal_interval(float(np.mean(share)), error, sum(len(shard.lines) for shard in runs.shards), least=0.0)


def curves(task: str, method: str, runs: Runs) -> list[Row]:
    """Reward, accuracy, diversity and KL on the way; a search is one point."""
    rows = []
    for place in range(len(runs.shards[0].header["points"])):
        points = [shard.header["points"][place] for shard in runs.shards if place < len(shard.header["points"])]
        before = [base.header["summary"]["diversity"] for base in runs.bases]
        variant = {"queries": points[0]["queries"]}
        for metric in ("reward", "accuracy", "diversity", "kl"):
            values = [point[metric] for point in points]
            values = [a / b for a, b in zip(values, before, strict=False)] if metric == "diversity" else values
            mean, count = float(np.mean(values)), len(values)
            estimate = mean if count < 2 else normal_interval(mean, float(np.std(values, ddof=1)) / count**0.5, count)
            rows.append(align_row(f"{task}, by queries", method, variant, metric, estimate, count, count))
    return rows


def generalisation(task: str, method: str, runs: Runs, classes: int | None, several: Sequence[int]) -> list[Row]:
    """Gain and accuracy on the classes tuned on (seen) and on those never asked for (unseen)."""
    every = sorted({line["label"] for line in runs.bases[0].lines})
    tuned_on = list(range(classes)) if classes is not None else every
    rows = []
    chosen: dict[str, dict[str, Any]] = {"seen": {"only": tuned_on}, "unseen": {"other": tuned_on}}
    for name, which in chosen.items():
        seed = runs.seed(**which)
        if not len(seed):
            continue
        gain = paired_difference(runs.values("reward", **which), runs.values("reward", base=True, **which), seed)
        right = success_interval(runs.values("right", **which) > 0, seed, rng=np.random.default_rng(0))
        variant = {"tuned on": f"{len(tuned_on)} of {len(every)} classes"}
        for metric, estimate in (("gain", gain), ("accuracy", right)):
            rows.append(align_row(f"{task}, generalisation", method, variant, f"{metric} {name}", estimate,
                                  len(runs.seeds)))
    return rows


def trials(bench: AlignBenchmark, task: str, method: str, parts: Iterable[Part]) -> list[Row]:
    """Every trial, and which was chosen."""
    base, rows = bench.read(task, BASE, Part(bench.tune_seed)), []
    for part in parts:
        shard = bench.read(task, method, part)
        if isinstance(shard, str) or isinstance(base, str):
            continue
        try:
            chosen = bench.best(task, method) == part.trial
        except LookupError:
            chosen = False
        summary = shard.header["summary"]
        variant = {**bench.trials(method)[part.trial or 0], "chosen": chosen}
        values = {"reward": summary["reward"], "accuracy": summary["accuracy"],
                  "diversity": summary["diversity"] / base.header["summary"]["diversity"], "kl": summary["kl"]}
        rows += [align_row(f"{task}, trials", method, variant, metric, value, 1, summary["n"])
                 for metric, value in values.items() if value is not None]
    return rows


def draw_all(rows: Sequence[Row], media: Path) -> dict[str, str]:
    """frontier_<task>.png and curves_<task>.png of what is there; their captions."""
    captions = {}
    for task in dict.fromkeys(row["task"] for row in rows if "," not in row["task"]):
        marks = marks_of(rows, task)
        base = next((mark for mark in marks if mark.name == "base"), None)
        if base is None or len(marks) < 2:
            continue
        frontier(marks, reward=UNITS[task]).savefig(media / f"frontier_{task}.png")
        captions[f"frontier_{task}.png"] = (
            "Reward against class accuracy, diversity and KL to the model before, with 95% intervals; small dots are "
            "trials, on another seed.")
        if curves_of := reward_curves(rows, task):
            sweep_panels({"reward": curves_of}, xlabel=f"rewards asked for to have {DELIVERED} samples",
                         ylabel=UNITS[task], log_x=True, references={"reward": {"base": base.values["reward"].value}},
                         ).savefig(media / f"curves_{task}.png")
            captions[f"curves_{task}.png"] = "Reward against reward queries, 95% intervals over seeds."
    return captions


PANELS = ("accuracy", "diversity", "kl")


def marks_of(rows: Sequence[Row], task: str) -> list[Mark]:
    """A mark for each method, and one for each trial."""
    marks: dict[Any, Mark] = {}
    for row in rows:
        if row["task"] not in (task, f"{task}, trials") or row["metric"] not in ("reward", *PANELS):
            continue
        key = (row["task"], row["method"], json.dumps(row["variant"]))
        mark = marks.setdefault(key, Mark(row["method"], row["task"] != task, {}))
        mark.values[row["metric"]] = _point(row, 0.0)
    return list(marks.values())


def reward_curves(rows: Sequence[Row], task: str) -> dict[str, list[Point]]:
    """method -> points over queries: of tuned methods on their way, of searches one."""
    lines: dict[str, list[Point]] = {}
    for row in filter_rows(rows, task=f"{task}, by queries", metric="reward"):
        lines.setdefault(row["method"], []).append(_point(row, row["variant"]["queries"]))
    queries = {row["method"]: row["value"] or 0.0 for row in filter_rows(rows, task=task, metric="queries")}
    for row in filter_rows(rows, task=task, metric="reward"):
        if row["method"] not in lines and queries.get(row["method"], 0) > 0:
            lines[row["method"]] = [_point(row, queries[row["method"]])]
    return lines


def _point(row: Row, x: float) -> Point:
    return Point(x, math.nan if row["value"] is None else row["value"], row["low"], row["high"])
