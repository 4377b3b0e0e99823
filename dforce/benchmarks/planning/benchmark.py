"""The jobs of a planning benchmark, tunings and evaluations, and the rows that come out of their files.

    tuning/<method>.jsonl          every trial, from starts that are never reported
    shards/<method>-<seed>.jsonl   the episodes of one method and seed under all its executors
    shards/<method>-<seed>.npz     the first of them, for pictures
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dforce.benchmarks.planning.methods import MethodInputs, play_method
from dforce.benchmarks.planning.suite import MethodNode, Suite, label
from dforce.guidance.reporting import share_of
from dforce.planning.control import Executed
from dforce.planning.evaluation import headline
from dforce.planning.scores import ScoreReport, blocked_mask, score_report
from dforce.planning.tasks import Task
from dforce.runs.jobs import Job, slug
from dforce.runs.progress import Ticker, bar
from dforce.runs.shards import Shard, counts, read_shard, write_shard

DRAWN = 6   # episodes of each method that are kept for pictures: blocked ones first,
AMONG = 25  # of so many


@dataclass(frozen=True)
class PlanningBenchmark:
    """A suite on a task in a folder."""

    suite: Suite
    task: Task
    data: str       # Minari name of the demonstrations
    out: Path       # the run folder
    networks: Path  # folder of the trainings
    trained: Callable[[str, int], dict[str, Any]]  # (model, seed) -> settings that the network was trained with
    options: Mapping[str, Any] = field(default_factory=dict)  # device, precision and trust of `MethodInputs`
    tell: Callable[[str], None] = print  # receives messages

    def model_folder(self, model: str, seed: int) -> Path:
        return self.networks / f"{slug(model)}-{seed}"

    def tuning_file(self, method: str) -> Path:
        return self.out / "tuning" / f"{slug(method)}.jsonl"

    def shard_file(self, method: str, seed: int) -> Path:
        return self.out / "shards" / f"{slug(method)}-{seed}.jsonl"

    def source(self, method: MethodNode, seed: int, *, model: Path | None = None) -> MethodInputs:
        """model: another checkpoint than the newest of the training."""
        if model is None and method.model is not None:
            model = self.model_folder(method.model, seed)
        return MethodInputs(self.task, self.data, model, seed=seed, cache=str(self.networks / "learnt"), **self.options)

    def identity(self, method: MethodNode, seed: int) -> dict[str, Any]:
        """The settings that both tuning and evaluation of a method depend on, but for the starts."""
        return {"task": self.task.name, "maze": list(self.task.maze.rows), "steps": self.task.steps, "data": self.data,
                "node": method.node, "executors": {name: self.suite.executors[name] for name in method.executors},
                "replan_every": method.replan_every, "shrink": method.shrink, "seed": seed,
                "network": self.trained(method.model, seed) if method.model else None}


def tuning_identity(bench: PlanningBenchmark, method: MethodNode) -> dict[str, Any]:
    """Starts of a seed that is not reported, dealt out to the networks of all training seeds."""
    networks = [bench.trained(method.model, seed) for seed in _tuned_on(bench, method)] if method.model else None
    return {**bench.identity(method, 0), "network": networks, "trials": method.trials, "starts": bench.suite.tune_seed,
            "episodes": bench.suite.tune_episodes}


def _tuned_on(bench: PlanningBenchmark, method: MethodNode) -> range:
    """Training seeds that a method is tuned on: a setting that suits one network alone may fail the others."""
    return bench.suite.runs(method)[:bench.suite.tune_episodes] if method.model else range(1)


def tune_method(bench: PlanningBenchmark, method: MethodNode) -> None:
    """Plays every trial and chooses the one of the highest mean score, over all starts and blocked ones alike.

    The criterion is the mean of the two means under the method's first executor: most starts need no planning. Start i
    is played with the network of training seed i modulo their number. A trial whose plans are not finite has lost.
    """
    starts, goals = bench.task.starts(bench.suite.tune_episodes, bench.suite.tune_seed)
    blocked = blocked_mask(bench.task.world, starts, goals)
    seeds = _tuned_on(bench, method)
    sources = [(bench.source(method, seed), slice(seed, None, len(seeds))) for seed in seeds]
    trials: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    with Ticker(len(method.trials), f"tune {method.name}") as ticker:
        for settings in method.trials:
            advance = share_of(ticker.part(), 1 / len(sources))
            try:
                played = [play_method(method, settings, bench.suite.executors, source, starts[part], goals[part],
                                      advance) for source, part in sources]
            except ValueError as error:
                if "not finite" not in str(error):
                    raise
                trials.append({"settings": settings, "criterion": None, "failed": str(error)})
                continue
            reports = [score_report(bench.task.world, [each.executed for each in alike], [
                blocked[part] for _, part in sources]) for alike in zip(*played, strict=True)]
            for each, report in zip(played[0], reports, strict=True):
                name, variant = label(method.name, each.executor), {**each.variant, **settings}
                lines += report.episodes(task=f"{bench.task.name}, tuning", method=name, variant=variant)
            trials.append({"settings": settings, "criterion": criterion(reports[0])})
    scores = [-np.inf if trial["criterion"] is None else trial["criterion"] for trial in trials]
    if not np.isfinite(scores).any():
        raise ValueError(f"no trial of {method.name} gave finite plans: {trials[0]['failed']}")
    chosen = method.trials[int(np.argmax(scores))]
    for name in at_the_end(method, chosen):
        bench.tell(f"{method.name}: {name}={chosen[name]} did best, at the end of the values tried; try others beyond")
    about = {"method": method.name, "chosen": chosen, "trials": trials}
    write_shard(bench.tuning_file(method.name), tuning_identity(bench, method), about, lines)


def at_the_end(method: MethodNode, chosen: Mapping[str, Any]) -> list[str]:
    """Parameters whose chosen value is the least or greatest of at least three: a better one may lie beyond."""
    tried = method.tune.items() if isinstance(method.tune, dict) else ()
    return [name for name, values in tried if len(values) > 2 and all(isinstance(v, (int, float)) for v in values)
            and chosen[name] in (min(values), max(values))]


def criterion(report: ScoreReport) -> float:
    """Mean of the mean score of all starts and of that of the blocked ones; of all, where none is blocked."""
    values = report.values[headline(report)]
    subsets = [values, values[report.blocked]] if report.blocked.any() else [values]
    return float(np.mean([subset.mean() for subset in subsets]))


def read_tuning(bench: PlanningBenchmark, method: MethodNode) -> Shard | str:
    return read_shard(bench.tuning_file(method.name), tuning_identity(bench, method))


def tuned_settings(bench: PlanningBenchmark, method: MethodNode) -> dict[str, Any]:
    """The settings that tuning chose for a method, or for the method whose tuning it takes; else FileNotFoundError."""
    if method.tune is None:
        return {}
    tuned = bench.suite.methods[method.tune] if isinstance(method.tune, str) else method
    shard = read_tuning(bench, tuned)
    if isinstance(shard, str):
        raise FileNotFoundError(f"{tuned.name} has not been tuned: {shard}")
    return shard.header["chosen"]


def evaluation_identity(bench: PlanningBenchmark, method: MethodNode, seed: int) -> dict[str, Any]:
    return {**bench.identity(method, seed), "settings": tuned_settings(bench, method),
            "starts": seed, "drawn": bench.suite.episodes, "episodes": method.episodes}


def evaluate(bench: PlanningBenchmark, method: MethodNode, seed: int) -> None:
    """Plays the method of one training seed from the starts of that seed, and writes its shard."""
    identity = evaluation_identity(bench, method, seed)
    starts, goals = bench.task.starts(bench.suite.episodes, seed)
    starts, goals = starts[:method.episodes], goals[:method.episodes]
    blocked = blocked_mask(bench.task.world, starts, goals)
    with bar(f"play {method.name}") as advance:
        played = play_method(method, identity["settings"], bench.suite.executors, bench.source(method, seed), starts,
                             goals, advance)
    lines, costs = [], []
    for each in played:
        report = score_report(bench.task.world, [each.executed], [blocked])
        report = report._replace(seed=np.full(len(starts), seed))
        name, variant = label(method.name, each.executor), {"executor": each.executor or "its own", **each.variant}
        lines += report.episodes(task=bench.task.name, method=name, variant=variant)
        costs.append({"method": name, "variant": variant, "episodes": len(starts)} | each.cost._asdict())
    file = bench.shard_file(method.name, seed)
    keep_pictures(file.with_suffix(".npz"), played[0].executed, blocked)
    write_shard(file, identity, {"method": method.name, "seed": seed, "costs": costs}, lines)


def keep_pictures(file: Path, executed: Executed, blocked: np.ndarray) -> None:
    """Starts, goals, paths and first plans of the episodes worth drawing: the same ones for all methods of a seed."""
    chosen = np.argsort(~blocked[:AMONG], kind="stable")[:DRAWN]
    arrays = {"episode": chosen, "goal": executed.goals[chosen], "path": executed.trajectory[chosen, :, :2],
              "returns": executed.returns[chosen]}
    if executed.plan is not None:
        arrays["plan"] = executed.plan.states[chosen, :, :2]
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp.npz")
    np.savez_compressed(temporary, allow_pickle=False, **{k: np.asarray(v, np.float32) for k, v in arrays.items()})
    temporary.replace(file)


def read_evaluation(bench: PlanningBenchmark, method: MethodNode, seed: int) -> Shard | str:
    try:
        identity = evaluation_identity(bench, method, seed)
    except FileNotFoundError as missing:
        return str(missing)
    return read_shard(bench.shard_file(method.name, seed), identity)


def benchmark_jobs(bench: PlanningBenchmark, models: Mapping[tuple[str, int], Job]) -> list[Job]:
    """Trainings (`models`, by network and seed), seed by seed, then tunings, then evaluations, seed by seed."""
    methods = bench.suite.methods.values()
    jobs = [unit for _, unit in sorted(models.items(), key=lambda item: item[0][1])]
    for method in methods:
        if isinstance(method.tune, dict):
            needs = tuple(name for seed in _tuned_on(bench, method) for name in _network(models, method, seed))
            jobs.append(Job(f"tune {method.name}", needs, partial(counts, partial(read_tuning, bench, method),
                                                                  bench.tell), partial(tune_method, bench, method)))
    for seed in range(bench.suite.seeds):
        for method in methods:
            if seed not in bench.suite.runs(method):
                continue
            tuned = method.tune if isinstance(method.tune, str) else method.name
            needs = _network(models, method, seed) + ((f"tune {tuned}",) if method.tune else ())
            jobs.append(Job(f"play {method.name}-{seed}", needs,
                            partial(counts, partial(read_evaluation, bench, method, seed), bench.tell),
                            partial(evaluate, bench, method, seed)))
    return jobs


def _network(models: Mapping[tuple[str, int], Job], method: MethodNode, seed: int) -> tuple[str, ...]:
    return (models[method.model, seed].name,) if method.model else ()
