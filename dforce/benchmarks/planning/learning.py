"""Scores over training: a method played with every checkpoint that a training kept, as one more job of a benchmark."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dforce.benchmarks.planning.benchmark import PlanningBenchmark, evaluation_identity
from dforce.benchmarks.planning.methods import play_method
from dforce.benchmarks.planning.suite import MethodNode, label
from dforce.config import bounded_yaml
from dforce.planning.evaluation import headline, pooled
from dforce.planning.scores import blocked_mask, score_report
from dforce.report.rows import Row
from dforce.runs.jobs import Job, slug
from dforce.runs.progress import progress
from dforce.runs.shards import Shard, read_shard, write_shard
from dforce.train.checkpoint import step_folder

LEAST = 3  # checkpoints that make a curve


def learning_jobs(bench: PlanningBenchmark, needs: dict[str, tuple[str, ...]]) -> list[Job]:
    """One for each method of `learning`, with work for LEAST checkpoints or more. needs: job -> its needs."""
    return [Job(f"learning {name}", needs[f"play {name}-0"], partial(_done, bench, bench.suite.methods[name]),
                 partial(learn, bench, bench.suite.methods[name])) for name in bench.suite.learning["methods"]]


def checkpoints(bench: PlanningBenchmark, method: MethodNode) -> dict[int, Path]:
    """step -> checkpoint, of the first training seed: the regular ones and the last, not where it was interrupted."""
    assert method.model is not None
    run = bench.model_folder(method.model, 0)
    names = [folder.name.removeprefix("step_") for folder in (run / "checkpoints").glob("step_*")]
    steps = sorted(int(name) for name in names if name.isdigit())
    if not steps:
        return {}
    every = yaml.safe_load(bounded_yaml(run / "config.yaml"))["save_every"]
    return {step: step_folder(run / "checkpoints", step) for step in steps if step % every == 0 or step == steps[-1]}


def learn(bench: PlanningBenchmark, method: MethodNode) -> None:
    """Plays every checkpoint from the first of the reported starts, with the settings tuned for the last one."""
    identity, count = _identity(bench, method), bench.suite.learning["episodes"]
    starts, goals = bench.task.starts(bench.suite.episodes, 0)
    starts, goals = starts[:count], goals[:count]
    blocked = blocked_mask(bench.task.world, starts, goals)
    lines: list[dict[str, Any]] = []
    folders = checkpoints(bench, method)
    for step, folder in progress(folders.items(), f"learning {method.name}", total=len(folders)):
        source = bench.source(method, 0, model=folder)
        for each in play_method(method, identity["settings"], bench.suite.executors, source, starts, goals):
            report = score_report(bench.task.world, [each.executed], [blocked])
            name = label(method.name, each.executor)
            lines += report.episodes(task=f"{bench.task.name}, over training", method=name, variant={"step": step})
    write_shard(_file(bench, method), identity, {"method": method.name}, lines)


def learning_rows(bench: PlanningBenchmark) -> list[Row]:
    """The score after each number of training steps, under a task name of its own."""
    rows: list[Row] = []
    for name in bench.suite.learning["methods"]:
        shard = _read(bench, bench.suite.methods[name])
        if isinstance(shard, str):
            continue
        for (task, method, variant), report in pooled(shard.lines).items():
            rows += [row for row in report.rows(task=task, method=method, variant=json.loads(variant))
                     if row["metric"] == headline(report)]
    return rows


def _identity(bench: PlanningBenchmark, method: MethodNode) -> dict[str, Any]:
    return {**evaluation_identity(bench, method, 0), "episodes": bench.suite.learning["episodes"],
            "checkpoints": list(checkpoints(bench, method))}


def _read(bench: PlanningBenchmark, method: MethodNode) -> Shard | str:
    try:
        return read_shard(_file(bench, method), _identity(bench, method))
    except FileNotFoundError as missing:
        return str(missing)


def _done(bench: PlanningBenchmark, method: MethodNode) -> bool:
    return len(checkpoints(bench, method)) < LEAST or not isinstance(_read(bench, method), str)


def _file(bench: PlanningBenchmark, method: MethodNode) -> Path:
    return bench.out / "learning" / f"{slug(method.name)}.jsonl"
