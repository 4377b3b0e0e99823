"""A planner tuned on what its plans earn, beside rivals that do not learn, as a graph of jobs."""

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dforce.planning.evaluation import Method, compare_methods, planned, reference_methods
from dforce.planning.returns import LowTemperature, StartSampler, best_driven
from dforce.planning.tuning import PlannerTuning, PlanPolicy, PolicyMonitor, tune_policy
from dforce.planning.tuning_report import BASE, GUIDED, SAMPLED, report_tuning, tuned_folder
from dforce.runs.folder import Invocation, RunFolder, write_atomic
from dforce.runs.job_run import Deadline, do_jobs, run_graph
from dforce.runs.jobs import Job, Outcome
from dforce.runs.progress import bar


def run_planner_tuning(tuning: PlannerTuning, call: Invocation) -> None:
    """Does what is left: tunings and evaluations are jobs of their own; then tables and pictures of all results."""
    late = Deadline(tuning.limit_seconds)
    tuning.load()  # what is refused, is refused before the folder is touched
    done = run_graph(call, partial(_work, tuning, late))
    if done is not None:
        print(f"plan with what was tuned: dforce plan checkpoint={done}")


def _work(tuning: PlannerTuning, late: Callable[[], bool], folder: RunFolder) -> Outcome:
    return do_jobs(tuning_jobs(tuning, folder.path), folder, late=late, report=partial(report_tuning, tuning, folder))


def tuning_jobs(tuning: PlannerTuning, root: Path) -> list[Job]:
    """Every tuning, and the episodes of the base and of what was tuned, from the same starts. root: the run folder."""
    jobs = []
    for seed in tuning.seeds:
        file = root / "played" / f"{BASE}-{seed}.json"
        jobs.append(Job(f"play {BASE} {seed}", (), file.is_file, partial(_play, tuning, BASE, seed, file, None)))
        for name in tuning.algorithms:
            where = tuned_folder(root, name, seed)
            file = root / "played" / f"{name}-{seed}.json"
            jobs.append(Job(f"tune {name} {seed}", (), (where / "done").is_file,
                            partial(_tune, tuning, name, seed, where)))
            jobs.append(Job(f"play {name} {seed}", (f"tune {name} {seed}",), file.is_file,
                            partial(_play, tuning, name, seed, file, where)))
    return jobs


def _tune(tuning: PlannerTuning, algorithm: str, seed: int, where: Path) -> None:
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

    tune_policy(tuning, algorithm, seed, where, tell=tell)
    write_atomic(where / "done", f"{time.process_time() - begin:.1f} processor seconds in the last process\n")


def _play(tuning: PlannerTuning, name: str, seed: int, file: Path, checkpoint: Path | None) -> None:
    """The episodes of one network, and of the rivals if it is the base, into `file`."""
    policy = tuning.load(None if checkpoint is None else str(checkpoint))
    world, executor = policy.task.world, tuning.executor
    starts, goals = policy.task.starts(tuning.episodes, seed)
    methods = [planned(name, world, policy.planner, executor, seed=seed, variant={"sampling": SAMPLED})]
    if tuning.guided.scale:
        guided = policy.planner.with_(order=2, eta=0.0, spacing="log_snr", **tuning.guided._asdict())
        methods.append(planned(name, world, guided, executor, seed=seed, variant={"sampling": GUIDED}))
    if name == BASE:
        methods += _rivals(tuning, policy, seed) + reference_methods(world, seed=seed)
    compared = compare_methods(world, methods, starts, goals, task=policy.task.name, bar=bar)
    results = [{"method": method.name, "variant": method.variant, "values": {key: values.tolist() for key, values
                in report.values.items()}} for method, report in zip(methods, compared.reports, strict=True)]
    kl = {} if name == BASE else {"kl": _kl(tuning, policy, seed)}
    file.parent.mkdir(exist_ok=True)
    blocked = compared.blocked.tolist()
    write_atomic(file, json.dumps({"task": policy.task.name, "blocked": blocked, "methods": results, **kl}))


def _rivals(tuning: PlannerTuning, policy: PlanPolicy, seed: int) -> list[Method]:
    """Rivals that use the base alone: less noise, or the best of several plans, all of them driven."""
    rivals = []
    if tuning.temperature != 1:
        cold = LowTemperature(**vars(policy.planner), temperature=tuning.temperature)
        rivals.append(planned(cold.method, policy.task.world, cold, tuning.executor, seed=seed,
                              variant={"sampling": SAMPLED}))
    if tuning.best_of:
        best = best_driven(policy.planner, policy.returns, tuning.best_of)
        rivals.append(Method(f"best of {tuning.best_of}, driven", {"sampling": SAMPLED, **policy.planner.variant},
                             lambda starts, goals, advance: best(starts, goals, seed, advance)))
    return rivals


def _kl(tuning: PlannerTuning, policy: PlanPolicy, seed: int) -> list[float]:
    """KL to the base of each of some runs from held-out starts, nats of a whole plan."""
    starts = StartSampler(policy.task, blocked=tuning.starts == "blocked")(tuning.watch.plans, seed)
    return PolicyMonitor(policy, tuning.load().bundle.denoiser, *starts, seed=seed).values()["kl"].tolist()
