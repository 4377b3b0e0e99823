"""`dforce benchmark align`: ways of alignment on one small model, compared; goes on where it stopped."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from dforce.config import nearest
from dforce.planning.shards import Shard, write_shard
from dforce.planning.units import Outcome, Unit, claim, run_units
from dforce.report.html import write_index
from dforce.report.results import append_episodes
from dforce.report.table import csv_table, markdown_table
from dforce.run import RunFolder, write_atomic
from dforce.verbs import align_tables
from dforce.verbs.align_runs import BASE, Bench, Part
from dforce.verbs.alignments import TASKS, Made, draw, make_judge, make_weak, searched, tuned
from dforce.verbs.trainings import plain

FOLDER = False  # a benchmark goes on in the folder that it has
FEW = {"epochs": 2, "samples": 32, "points": 1, "judged": 80, "searched": 40, "seeds": 1, "steps": 3, "weak_steps": 3,
       "judge_steps": 3, "spread": [1]}  # fast_dev_run


def run(cfg: Any, _: None = None) -> None:
    """Does what is left of the benchmark, in this process; others may work in the same folder. See the YAML."""
    begin = time.monotonic()
    torch.set_num_threads(cfg.threads)
    asked = {**plain(cfg), **(FEW if cfg.fast_dev_run else {})}
    for task in asked["tasks"]:
        if task not in TASKS:
            raise ValueError(f"no task {task!r}{nearest(task, TASKS)}")
    job = HydraConfig.get()
    out = job.runtime.output_dir if job.mode == RunMode.MULTIRUN else cfg.out
    folder = RunFolder("benchmark/align", asked, out=out, resume=True,
                       command=shlex.join(["dforce", "benchmark", "align", *job.overrides.task]))
    bench = Bench(asked, folder.path)
    try:
        with folder:
            late = (lambda: time.monotonic() - begin > cfg.limit) if cfg.limit else (lambda: False)
            outcome = _work(bench, folder, late)
            for name, error in outcome.failed.items():
                print(f"{name} failed: {error}")
                raise error
        if outcome.left:
            folder.status(f"stopped: {len(outcome.left)} units are left")
            print(f"stopped with {len(outcome.left)} units left ({', '.join(outcome.left[:3])}...); the same command "
                  f"with out={folder.path} goes on")
    finally:
        write_index(folder.path)
    print(f"open {folder.path / 'index.html'}")


def _work(bench: Bench, folder: RunFolder, late: Callable[[], bool]) -> Outcome:
    work = [unit._replace(work=partial(_timed, folder, unit, number)) for number, unit in enumerate(units(bench), 1)]

    def tell(name: str, left: int) -> None:
        print(f"{name} ({left} of {len(work)} left)", flush=True)

    try:
        return run_units(work, folder.path / "locks", late=late, tell=tell)
    finally:
        report(bench, folder)


def units(bench: Bench) -> Iterator[Unit]:
    """The judge and the weak model; of each task the model before, all trials, then seed after seed."""
    yield Unit("judge", (), (bench.judge / "classifier.json").is_file,
               partial(make_judge, bench.judge, bench.asked["judge_steps"]))
    if "class" in bench.asked["tasks"]:
        yield Unit("weak model", (), (bench.weak / "layout.json").is_file,
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
            yield Unit(_name(task, method, part), needs, partial(_there, bench, task, method, part),
                       partial(make, bench, task, method, part))


def _name(task: str, method: str, part: Part) -> str:
    return f"{task}, {method}, {part.name}"


def _there(bench: Bench, task: str, method: str, part: Part) -> bool:
    found = bench.read(task, method, part)
    if isinstance(found, str) and found:
        print(f"made anew: {found}", flush=True)
    return isinstance(found, Shard)


def _timed(folder: RunFolder, unit: Unit, number: int) -> None:
    begin = time.process_time()
    unit.work()
    folder.log(number, unit=unit.name, unit_seconds=round(time.process_time() - begin, 3))


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
    with claim(folder.path / "locks" / "report.lock") as mine:
        if not mine:  # the other process sees the same files
            return
        log = folder.path / "metrics.jsonl"
        done = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
        folder.results(tables.rows, work_seconds=round(sum(one["unit_seconds"] for one in done), 1))
        partial_file = folder.path / "episodes.jsonl.part"
        partial_file.unlink(missing_ok=True)
        append_episodes(partial_file, tables.lines).replace(folder.path / "episodes.jsonl")
        write_atomic(folder.path / "tables.md", markdown_table(tables.rows))
        write_atomic(folder.path / "tables.csv", csv_table(tables.rows))
        captions = align_tables.draw_all(tables.rows, folder.media)
        write_atomic(folder.media / "captions.json", json.dumps(captions, indent=1) + "\n")
        print(markdown_table([row for row in tables.rows if row["task"] in bench.asked["tasks"]],
                             metrics=["reward", "accuracy", "diversity", "kl"]))
