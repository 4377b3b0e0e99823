"""`dforce benchmark align`: ways of alignment on one small model, compared; goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from dforce.benchmarks.align import tables as align_tables
from dforce.benchmarks.align.methods import TASKS, Made, draw, make_judge, make_weak, searched, tuned
from dforce.benchmarks.align.runs import BASE, Bench, Part
from dforce.config import nearest
from dforce.report.table import markdown_table
from dforce.runs.folder import Invocation, RunFolder
from dforce.runs.job_run import Deadline, do_jobs, publish, run_graph
from dforce.runs.jobs import Job, Outcome
from dforce.runs.shards import Shard, write_shard

FEW = {"epochs": 2, "samples": 32, "points": 1, "judged": 80, "searched": 40, "seeds": 1, "steps": 3, "weak_steps": 3,
       "judge_steps": 3, "spread": [1]}  # fast_dev_run


def run(cfg: Any, call: Invocation) -> None:
    """Does what is left of the benchmark, in this process; others may work in the same folder. See the YAML."""
    late = Deadline(cfg["limit"])
    torch.set_num_threads(cfg["threads"])
    asked = {**cfg, **(FEW if cfg["fast_dev_run"] else {})}
    for task in asked["tasks"]:
        if task not in TASKS:
            raise ValueError(f"no task {task!r}{nearest(task, TASKS)}")
    run_graph(call._replace(config=asked), lambda folder: _work(Bench(asked, folder.path), folder, late), names=3)


def _work(bench: Bench, folder: RunFolder, late: Deadline) -> Outcome:
    return do_jobs(jobs(bench), folder, late=late, report=lambda: report(bench, folder), clock=time.process_time)


def jobs(bench: Bench) -> Iterator[Job]:
    """The judge and the weak model; of each task the model before, all trials, then seed after seed."""
    yield Job("judge", (), (bench.judge / "classifier.json").is_file,
               partial(make_judge, bench.judge, bench.asked["judge_steps"]))
    if "class" in bench.asked["tasks"]:
        yield Job("weak model", (), (bench.weak / "layout.json").is_file,
                   partial(make_weak, bench.weak, bench.asked["weak_steps"]))
    for task in bench.asked["tasks"]:
        first = ("judge", *(["weak model"] if task == "class" else []))
        found = [(BASE, part) for part in bench.parts(BASE)]
        found += [(method, part) for method in bench.methods(task) for part in bench.parts(method)]
        bases = tuple(_name(task, BASE, part) for part in bench.parts(BASE))
        order = sorted(found, key=lambda one: (one[0] != BASE, one[1].trial is None, one[1].seed,
                                               one[1].classes is not None))
        for method, part in order:
            trials = tuple(_name(task, method, other) for other in bench.parts(method) if other.trial is not None)
            needs = first if method == BASE else (*first, *bases) if part.trial is not None else (
                *first, *bases, *trials)
            yield Job(_name(task, method, part), needs, partial(_there, bench, task, method, part),
                       partial(make, bench, task, method, part))


def _name(task: str, method: str, part: Part) -> str:
    return f"{task}, {method}, {part.name}"


def _there(bench: Bench, task: str, method: str, part: Part) -> bool:
    found = bench.read(task, method, part)
    if isinstance(found, str) and found:
        print(f"made anew: {found}", flush=True)
    return isinstance(found, Shard)


def make(bench: Bench, task: str, method: str, part: Part) -> None:
    """One run of a method, into its file."""
    bed, count = bench.bed(task), bench.count(method, part)
    if method == BASE:
        made, setting = Made(draw(bed, bed.model.denoiser, count, part.seed)), {}
    else:
        node, setting = bench.asked["methods"][method], bench.setting(task, method, part)
        if "algorithm" in node:
            classes = None if part.classes is None else range(part.classes)
            made = tuned(bed, node, setting, seed=part.seed, count=count, classes=classes,
                         budget=bench.budget(part))
        else:
            made = searched(bed, node, setting, seed=part.seed, count=count)
    about = {"summary": made.judged.summary(), "queries": made.queries, "a_sample": made.a_sample,
             "work_seconds": round(made.seconds, 3), "points": made.points, "chosen": setting}
    write_shard(bench.file(task, method, part), bench.identity(task, method, part), about, made.judged.lines())


def report(bench: Bench, folder: RunFolder) -> None:
    """results.json, episodes.jsonl, tables and pictures of all that is there, whoever made it."""
    tables = align_tables.collect(bench)
    if not tables.lines:
        return
    if publish(folder, tables.rows, tables.lines, lambda: markdown_table(tables.rows),
               partial(align_tables.draw_all, tables.rows)):
        print(markdown_table([row for row in tables.rows if row["task"] in bench.asked["tasks"]],
                             metrics=["reward", "accuracy", "diversity", "kl"]))
