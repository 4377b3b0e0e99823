"""`dforce benchmark planning`: planners on one task, trained, tuned, played and compared; goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf

from dforce.benchmarks.planning.benchmark import Bench, jobs
from dforce.benchmarks.planning.learning import learning_jobs
from dforce.benchmarks.planning.pictures import draw_benchmark
from dforce.benchmarks.planning.suite import Suite, read_suite
from dforce.benchmarks.planning.tables import collect
from dforce.benchmarks.planning.trainings import plain, training
from dforce.config import nearest
from dforce.planning.tasks import Task, get_task
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder
from dforce.runs.jobs import Outcome
from dforce.runs.resumable import asked_out, do_jobs, go_on, open_folder, publish, until
from dforce.train.precision import device_of

FOLDER = False  # a benchmark goes on in the folder that it has
PLACE = Path(str(files("dforce.configs"))) / "planning"
FEW, SHORT = 40_000, 60  # environment steps of data, and of an episode, under fast_dev_run
MAIN = ("score", "score_iqm", "return", "success", "score_latched", "return_latched", "first_reach")
COSTS = ("plan_seconds", "plan_tokens", "episode_seconds")


def run(cfg: Any, _: None = None) -> None:
    """Does what is left of the benchmark, in this process; others may work in the same folder. See the YAML."""
    late = until(cfg.limit)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    task = get_task(cfg.task)
    task = task._replace(steps=min(task.steps, SHORT)) if cfg.fast_dev_run else task
    text, file = _text(cfg, task)
    suite = _suite(cfg, text, file, methods=cfg.methods, models=cfg.models)
    folder = open_folder("benchmark/planning", {**plain(cfg), "resolved": text}, asked_out(cfg.out))
    go_on(folder, lambda: _work(cfg, suite, _suite(cfg, text, file), task, folder, late), named=4)


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
    """Does the jobs of `suite`; the tables are of all that is there of the `whole`, whoever made it."""
    with locked(folder.path / "locks" / "data.lock", wait=True):  # two processes must not write the same data
        data = task.make_data(steps=FEW if cfg.fast_dev_run else None)
    networks = Path(cfg.networks) if cfg.networks else folder.path / "models"
    followed = {whole.methods[name].model for name in whole.learning["methods"]}
    models = {(model.name, seed): training(model, seed, data=data, folder=networks, trust=cfg.trust, device=cfg.device,
                                           every=seed == 0 and model.name in followed)
              for model in {**whole.models, **suite.models}.values() for seed in range(model.seeds)}
    options = {"device": device_of(cfg.device), "precision": cfg.precision, "trust": cfg.trust}
    bench = Bench(suite, task, data, folder.path, networks, lambda model, seed: models[model, seed].settings, options,
                  _once())
    work = jobs(bench, {key: one.unit(late=late, tell=bench.tell) for key, one in models.items()
                         if key[0] in suite.models})
    work += learning_jobs(bench, {job.name: job.needs for job in work})
    return do_jobs(work, folder, late=late, report=lambda: report(replace(bench, suite=whole), folder))


def _once() -> Callable[[str], None]:
    """Prints every message once."""
    return cache(lambda text: print(text, flush=True))


def report(bench: Bench, folder: RunFolder) -> None:
    """results.json, episodes.jsonl, tables.md, tables.csv and the pictures of all that is there."""
    tables = collect(bench)
    if not tables.lines:
        return
    shown = sections(tables.rows)
    if publish(folder, tables.rows, tables.lines,
               lambda: "\n".join(f"## {name}\n\n{markdown_table(rows)}" for name, rows in shown),
               partial(draw_benchmark, bench, tables.rows)):
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
