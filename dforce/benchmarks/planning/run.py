"""A planning benchmark from its settings to its tables: data, trainings, tunings, evaluations; it can be continued."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from dforce.benchmarks.planning.benchmark import PlanningBenchmark, benchmark_jobs
from dforce.benchmarks.planning.learning import learning_jobs
from dforce.benchmarks.planning.pictures import draw_benchmark
from dforce.benchmarks.planning.suite import Suite, read_suite
from dforce.benchmarks.planning.tables import planning_tables, sections
from dforce.benchmarks.planning.trainings import Compose, ModelTraining, model_training
from dforce.config import Node
from dforce.planning.tasks import Task, get_task
from dforce.report.table import markdown_table
from dforce.report.terminal import terminal_table
from dforce.runs.folder import Invocation, RunFolder
from dforce.runs.job_run import Deadline, PrintOnce, do_jobs, publish, run_graph
from dforce.runs.jobs import Outcome, locked
from dforce.runs.progress import bar
from dforce.train.precision import device_of

FEW, SHORT = 40_000, 60  # environment steps of data, and of an episode, under fast_dev_run


@dataclass(frozen=True)
class PlanningRun:
    """All settings of `dforce benchmark planning`; configs/verbs/benchmark/planning.yaml says what each does."""

    task: str
    suite: Node
    file: Path
    methods: list[str] | None
    models: list[str] | None
    seeds: int | None
    episodes: int | None
    tune_episodes: int | None
    networks: str | None
    limit: float | None
    device: str | None
    precision: str
    fast_dev_run: bool
    compose: Compose
    trust: str | None = None

    @cached_property
    def played_task(self) -> Task:
        task = get_task(self.task)
        return task._replace(steps=min(task.steps, SHORT)) if self.fast_dev_run else task

    def read(self, *, methods: list[str] | None = None, models: list[str] | None = None) -> Suite:
        """The suite, or the part of it that is named. Raises ValueError for what it cannot mean."""
        return read_suite(self.suite, seeds=self.seeds, episodes=self.episodes, tune_episodes=self.tune_episodes,
                          fast=self.fast_dev_run, trust=self.trust, files=[self.file], methods=methods,
                          models=models)

    def run(self, call: Invocation) -> None:
        """Does what is left, in this process; others may work in the same folder."""
        late = Deadline(self.limit)
        part, whole = self.read(methods=self.methods, models=self.models), self.read()
        call = call._replace(config={**call.config, "resolved": self.suite})
        run_graph(call, lambda folder: self._work(part, whole, folder, call.command, late))

    def _work(self, suite: Suite, whole: Suite, folder: RunFolder, command: str, late: Callable[[], bool]) -> Outcome:
        """Does the jobs of `suite`; the tables are of all results of the `whole`, whoever made them."""
        with locked(folder.path / "locks" / "data.lock", wait=True):  # two processes must not write the same data
            with bar("generate") as advance:
                data = self.played_task.make_data(steps=FEW if self.fast_dev_run else None, advance=advance)
        networks = Path(self.networks) if self.networks else folder.path / "models"
        trainings = self._trainings(suite, whole, command, data, networks)
        bench = PlanningBenchmark(suite, self.played_task, data, folder.path, networks,
                                  lambda model, seed: trainings[model, seed].settings,
                                  {"device": device_of(self.device), "precision": self.precision, "trust": self.trust},
                                  PrintOnce())
        jobs = benchmark_jobs(bench, {key: one.job(late=late, tell=bench.tell) for key, one in trainings.items()
                                      if key[0] in suite.models})
        jobs += learning_jobs(bench, {job.name: job.needs for job in jobs})
        return do_jobs(jobs, folder, late=late, report=partial(report_benchmark, replace(bench, suite=whole), folder))

    def _trainings(self, suite: Suite, whole: Suite, command: str, data: str,
                   networks: Path) -> dict[tuple[str, int], ModelTraining]:
        """By network and seed. Trainings whose progress is played (`learning`) keep all checkpoints of seed 0."""
        followed = {whole.methods[name].model for name in whole.learning["methods"]}
        return {(model.name, seed): model_training(model, seed, self.compose, command=command, data=data,
                                                   folder=networks, device=self.device,
                                                   keep_all=seed == 0 and model.name in followed)
                for model in {**whole.models, **suite.models}.values() for seed in range(model.seeds)}


def report_benchmark(bench: PlanningBenchmark, folder: RunFolder) -> None:
    """Writes results.json, episodes.jsonl, tables.md, tables.csv and the pictures of all results there are."""
    tables = planning_tables(bench)
    if not tables.lines:
        return
    shown = sections(tables.rows)
    if publish(folder, tables.rows, tables.lines,
               lambda: "\n".join(f"## {name}\n\n{markdown_table(rows)}" for name, rows in shown),
               partial(draw_benchmark, bench, tables.rows)):
        print(terminal_table(shown[0][1], metrics=[shown[0][1][0]["metric"], "success"]))
