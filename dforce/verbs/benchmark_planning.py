"""`dforce benchmark planning`: planners on one task, trained, tuned, played and compared; goes on where it stopped."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from dforce.config import nearest
from dforce.planning.benchmark import Bench, units
from dforce.planning.benchmark_pictures import draw_benchmark
from dforce.planning.learning import learning_units
from dforce.planning.suite import Suite, read_suite
from dforce.planning.tables import collect
from dforce.planning.tasks import Task, get_task
from dforce.planning.units import Outcome, Stopped, Unit, claim, run_units
from dforce.report.html import write_index
from dforce.report.results import append_episodes
from dforce.report.table import csv_table, markdown_table
from dforce.run import RunFolder, write_atomic
from dforce.verbs.trainings import plain, training

FOLDER = False  # a benchmark goes on in the folder that it has
PLACE = Path(str(files("dforce.configs"))) / "planning"
FEW, SHORT = 40_000, 60  # environment steps of data, and of an episode, under fast_dev_run
MAIN = ("score", "score_iqm", "return", "success", "score_latched", "return_latched", "first_reach")
COSTS = ("plan_seconds", "plan_tokens", "episode_seconds")


def run(cfg: Any, _: None = None) -> None:
    """Does what is left of the benchmark, in this process; others may work in the same folder. See the YAML."""
    begin = time.monotonic()
    late = (lambda: time.monotonic() - begin > cfg.limit) if cfg.limit else (lambda: False)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    task = get_task(cfg.task)
    task = task._replace(steps=min(task.steps, SHORT)) if cfg.fast_dev_run else task
    text, file = _text(cfg, task)
    suite = _suite(cfg, text, file, methods=cfg.methods, models=cfg.models)
    job = HydraConfig.get()
    out = job.runtime.output_dir if job.mode == RunMode.MULTIRUN else cfg.out
    folder = RunFolder("benchmark/planning", {**plain(cfg), "resolved": text}, out=out, resume=True,
                       command=shlex.join(["dforce", "benchmark", "planning", *job.overrides.task]))
    try:
        with folder:
            outcome = _work(cfg, suite, _suite(cfg, text, file), task, folder, late)
            for name, error in outcome.failed.items():
                if not isinstance(error, Stopped):
                    print(f"{name} failed: {error}")
                    raise error
        if outcome.left:
            _unfinished(folder, outcome)
    finally:
        write_index(folder.path)
    print(f"open {folder.path / 'index.html'}")


def _unfinished(folder: RunFolder, outcome: Outcome) -> None:
    folder.status(f"stopped: {len(outcome.left)} units are left")
    print(f"stopped with {len(outcome.left)} units left ({', '.join(outcome.left[:4])}...); the same command with "
          f"out={folder.path} goes on")


def _text(cfg: Any, task: Task) -> tuple[dict[str, Any], Path]:
    """The configuration of the suite that cfg asks for, and its file."""
    file = Path(cfg.suite) if cfg.suite else shipped(task, cfg.size)
    return plain(OmegaConf.merge(with_base(file), cfg.change or {})), file


def _suite(cfg: Any, text: dict[str, Any], file: Path, **kept: Any) -> Suite:
    return read_suite(text, seeds=cfg.seeds, episodes=cfg.episodes, tune_episodes=cfg.tune_episodes,
                      fast=cfg.fast_dev_run, trust=cfg.trust, files=[file], **kept)


def with_base(file: Path) -> Any:
    """A configuration merged over the one that its key `base` names, a shipped one or a file beside it."""
    if not file.is_file():
        raise ValueError(f"{file} is no file; give a YAML in the shape of those in {PLACE}")
    text = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    base = text.pop("base", None)
    if base is None:
        return OmegaConf.create(text)
    beside = file.with_name(f"{base}.yaml")
    return OmegaConf.merge(with_base(beside if beside.is_file() else PLACE / f"{base}.yaml"), text)


def shipped(task: Task, size: str) -> Path:
    """configs/planning/<task>-<size>.yaml; for a maze of one's own that of medium, whose episodes are as long."""
    known = sorted(path.stem for path in PLACE.glob("*.yaml"))
    name = "maze2d-medium" if task.name.startswith("maze2d-custom") else task.name
    if f"{name}-{size}" not in known:
        raise ValueError(f"no configuration for task={name} size={size}{nearest(f'{name}-{size}', known)}; or give "
                         "one of your own, suite=FILE")
    return PLACE / f"{name}-{size}.yaml"


def _work(cfg: Any, suite: Suite, whole: Suite, task: Task, folder: RunFolder, late: Callable[[], bool]) -> Outcome:
    """Does the units of `suite`; the tables are of all that is there of the `whole`, whoever made it."""
    with claim(folder.path / "locks" / "data.lock", wait=True):  # two processes must not write the same data
        data = task.make_data(steps=FEW if cfg.fast_dev_run else None)
    networks = Path(cfg.networks) if cfg.networks else folder.path / "models"
    followed = {whole.methods[name].model for name in whole.learning["methods"]}
    models = {(model.name, seed): training(model, seed, data=data, folder=networks, trust=cfg.trust,
                                           every=seed == 0 and model.name in followed)
              for model in {**whole.models, **suite.models}.values() for seed in range(model.seeds)}
    options = {"device": cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"), "precision": cfg.precision,
               "trust": cfg.trust}
    bench = Bench(suite, task, data, folder.path, networks, lambda model, seed: models[model, seed].settings, options,
                  _once())
    work = units(bench, {key: one.unit(late=late, tell=bench.tell) for key, one in models.items()
                         if key[0] in suite.models})
    work += learning_units(bench, {unit.name: unit.needs for unit in work})
    work = [unit._replace(work=partial(_timed, folder, unit, number)) for number, unit in enumerate(work, 1)]

    def tell(name: str, left: int) -> None:
        print(f"{name} ({left} of {len(work)} left)", flush=True)

    try:
        outcome = run_units(work, folder.path / "locks", late=late, tell=tell)
    finally:
        report(replace(bench, suite=whole), folder)
    return outcome


def _timed(folder: RunFolder, unit: Unit, number: int) -> None:
    """Does the unit's work, and logs how long it took."""
    begin = time.monotonic()
    unit.work()
    folder.log(number, unit=unit.name, unit_seconds=round(time.monotonic() - begin, 3))


def _once() -> Callable[[str], None]:
    """Prints every message once."""
    return cache(lambda text: print(text, flush=True))


def report(bench: Bench, folder: RunFolder) -> None:
    """results.json, episodes.jsonl, tables.md, tables.csv and the pictures of all that is there."""
    tables = collect(bench)
    if not tables.lines:
        return
    with claim(folder.path / "locks" / "report.lock") as mine:
        if not mine:  # the other process sees the same files
            return
        log = folder.path / "metrics.jsonl"
        done = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []
        folder.results(tables.rows, work_seconds=round(sum(one["unit_seconds"] for one in done), 1))
        partial = folder.path / "episodes.jsonl.part"
        partial.unlink(missing_ok=True)
        append_episodes(partial, tables.lines).replace(folder.path / "episodes.jsonl")
        shown = sections(tables.rows)
        text = "\n".join(f"## {name}\n\n{markdown_table(rows)}" for name, rows in shown)
        write_atomic(folder.path / "tables.md", text)
        write_atomic(folder.path / "tables.csv", csv_table(tables.rows))
        captions = draw_benchmark(bench, tables.rows, folder.media)
        write_atomic(folder.media / "captions.json", json.dumps(captions, indent=1) + "\n")
        print(markdown_table(shown[0][1], metrics=[shown[0][1][0]["metric"], "success"]))


def sections(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows as the tables that people read: scores, costs, differences, tuning."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    found = []
    for task in tasks:
        own = [row for row in rows if row["task"] == task]
        if task != tasks[0]:
            found.append((task, own))
            continue
        for name, metrics in ((task, MAIN), (f"{task}, what it costs", COSTS)):
            chosen = sorted((row for row in own if row["metric"] in metrics), key=lambda r: metrics.index(r["metric"]))
            found += [(name, chosen)] if chosen else []
    return found
