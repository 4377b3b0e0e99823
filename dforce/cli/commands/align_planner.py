"""`dforce align planner`: a planner tuned on what its plans earn, beside rivals that do not learn; goes on where it
stopped."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dforce.config import build
from dforce.planning.evaluation import Method, compare, planned, references
from dforce.planning.returns import LowTemperature, Starts, best_driven
from dforce.planning.tuning import FEW, Policy, Watch, chosen, policy, tuned
from dforce.planning.tuning_report import BASE, GUIDED, SAMPLED, place, report
from dforce.report.html import write_index
from dforce.runs.folder import RunFolder, write_atomic
from dforce.runs.jobs import Job, run_jobs
from dforce.runs.resumable import asked_out, open_folder, until

FOLDER = False  # a run goes on in the folder that it has
FREE = {"seeds", "beside", "limit_seconds", "out", "pictures"}  # may change from one call to the next


def run(cfg: Any, _: None = None) -> None:
    """Does what is left: tunings and evaluations are jobs of their own, then tables and pictures of all there is."""
    late = until(cfg.limit_seconds)
    algorithms = list(dict.fromkeys([cfg.algorithm, *cfg.beside]))
    check(cfg, algorithms)
    out = asked_out(cfg.out)
    if out:
        _as_before(Path(out), cfg)
    folder = open_folder("align/planner", cfg, out, resume=bool(out))
    try:
        with folder:
            outcome = run_jobs(jobs(cfg, algorithms, folder), folder.path / "locks", late=late,
                                tell=lambda name, left: print(f"{name} ({left} left)", flush=True))
            report(cfg, folder, algorithms)
            for error in outcome.failed.values():
                raise error
        if outcome.left:
            folder.status(f"stopped: {len(outcome.left)} jobs are left")
    finally:
        write_index(folder.path)
    print(f"open {folder.path / 'index.html'}")
    if not outcome.left:
        print(f"plan with what was tuned: dforce plan checkpoint={folder.path}")


def check(cfg: Any, algorithms: list[str]) -> None:
    """ValueError for what can be refused before anything is done."""
    if not cfg.checkpoint:
        raise ValueError("checkpoint is needed: a run folder of `dforce train`, a checkpoint, or the name of a model "
                         "that ships with dforce, such as maze2d-umaze")
    if not cfg.seeds or cfg.starts not in ("all", "blocked"):
        raise ValueError(f"want seeds=[0,...] and starts=all or blocked, got seeds={list(cfg.seeds)}, "
                         f"starts={cfg.starts}")
    if min(cfg.episodes, cfg.watch.every, cfg.watch.plans, cfg.save_every) < 1:
        raise ValueError("episodes, watch.every, watch.plans and save_every must be >= 1")
    if "draft" in algorithms:
        raise ValueError("draft goes back through the reward, but what a simulator pays has no gradient in the plan: "
                         "choose another algorithm")
    for name in algorithms:
        chosen(cfg, name)
    policy(cfg, build(cfg.executor, trust=cfg.trust))


def _as_before(out: Path, cfg: Any) -> None:
    """ValueError where `out` holds a run of other settings: its jobs would not be comparable with those to come."""
    file = out / "config.yaml"
    if not file.is_file():
        if out.is_dir() and any(out.iterdir()):
            raise ValueError(f"{out} has content that is no run of dforce align planner; choose another out=")
        return
    before, now = OmegaConf.to_container(OmegaConf.load(file)), OmegaConf.to_container(cfg, resolve=True)
    other = sorted(key for key in {*before, *now} - FREE if before.get(key) != now.get(key))
    if other:
        raise ValueError(f"{out} holds a run with other {', '.join(other)}: give the same settings to go on with it, "
                         "or another out=")


# ---------------------------------------------------------------------------------------------------------- jobs

def jobs(cfg: Any, algorithms: list[str], folder: RunFolder) -> list[Job]:
    """Every tuning, and the episodes of the base and of what was tuned, from the same starts."""
    executor, work = build(cfg.executor, trust=cfg.trust), []
    for seed in cfg.seeds:
        file = folder.path / "played" / f"{BASE}-{seed}.json"
        work.append(Job(f"play {BASE} {seed}", (), file.is_file, partial(_play, cfg, BASE, seed, executor, file,
                                                                          cfg.checkpoint)))
        for name in algorithms:
            where = place(folder.path, name, seed)
            file = folder.path / "played" / f"{name}-{seed}.json"
            work.append(Job(f"tune {name} {seed}", (), (where / "done").is_file,
                             partial(_tune, cfg, name, seed, executor, where)))
            work.append(Job(f"play {name} {seed}", (f"tune {name} {seed}",), file.is_file,
                             partial(_play, cfg, name, seed, executor, file, where)))
    return work


def _tune(cfg: Any, algorithm: str, seed: int, executor: Any, where: Path) -> None:
    """A tuning to its end; where/curve.jsonl has a line an epoch."""
    where.mkdir(parents=True, exist_ok=True)
    begin = time.process_time()
    curve = where / "curve.jsonl"

    def tell(queries: int, metrics: dict[str, float]) -> None:
        line = {"queries": queries, "cpu_seconds": round(time.process_time() - begin, 2), **metrics}
        before = [json.loads(each) for each in curve.read_text("utf-8").splitlines()] if curve.is_file() else []
        before = [each for each in before if each["queries"] < queries]  # without what a killed run did twice
        write_atomic(curve, "".join(json.dumps(each) + "\n" for each in [*before, line]))
        print(f"{algorithm} {seed}: {queries} plans driven, " + ", ".join(
            f"{name} {metrics[name]:.3g}" for name in ("reward", "watched_return", "watched_kl") if name in metrics),
            flush=True)

    tuned(cfg, algorithm, seed, executor, where, tell=tell)
    write_atomic(where / "done", f"{time.process_time() - begin:.1f} processor seconds in the last process\n")


def _play(cfg: Any, name: str, seed: int, executor: Any, file: Path, checkpoint: Any) -> None:
    """The episodes of one network, and of the rivals if it is the base's, into `file`."""
    own = policy(OmegaConf.merge(cfg, {"checkpoint": str(checkpoint)}), executor)
    starts, goals = own.task.starts(FEW if cfg.fast_dev_run else cfg.episodes, seed)
    methods = [planned(name, own.task.world, own.planner, executor, seed=seed, variant={"sampling": SAMPLED})]
    if cfg.guided.scale:
        guided = own.planner.with_(order=2, eta=0.0, spacing="log_snr", **cfg.guided)
        methods.append(planned(name, own.task.world, guided, executor, seed=seed, variant={"sampling": GUIDED}))
    if name == BASE:
        methods += _rivals(cfg, own, executor, seed) + references(own.task.world, seed=seed)
    compared = compare(own.task.world, methods, starts, goals, task=own.task.name)
    found = [{"method": method.name, "variant": method.variant, "values": {key: values.tolist() for key, values
              in report.values.items()}} for method, report in zip(methods, compared.reports, strict=True)]
    kl = {} if name == BASE else {"kl": _kl(cfg, own, executor, seed)}
    file.parent.mkdir(exist_ok=True)
    blocked = compared.blocked.tolist()
    write_atomic(file, json.dumps({"task": own.task.name, "blocked": blocked, "methods": found, **kl}))


def _rivals(cfg: Any, own: Policy, executor: Any, seed: int) -> list[Method]:
    """What one can do with the base alone: less noise, or the best of several plans, all of them driven."""
    rivals, place_ = [], own.task.world
    if cfg.temperature != 1:
        cold = LowTemperature(**vars(own.planner), temperature=cfg.temperature)
        rivals.append(planned(cold.method, place_, cold, executor, seed=seed, variant={"sampling": SAMPLED}))
    if cfg.best_of:
        best = best_driven(own.planner, own.returns, cfg.best_of)
        rivals.append(Method(f"best of {cfg.best_of}, driven", {"sampling": SAMPLED, **own.planner.variant},
                             lambda starts, goals: best(starts, goals, seed)))
    return rivals


def _kl(cfg: Any, own: Policy, executor: Any, seed: int) -> list[float]:
    """KL to the base of each of some runs from held-out starts, nats of a whole plan."""
    base = policy(cfg, executor)
    plans = FEW if cfg.fast_dev_run else cfg.watch.plans
    watch = Watch(own, base.bundle.denoiser, *Starts(own.task, blocked=cfg.starts == "blocked")(plans, seed), seed=seed)
    return watch.values()["kl"].tolist()
