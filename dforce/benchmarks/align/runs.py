"""The runs of `dforce benchmark align`, as jobs: which there are, where their results lie, what each follows from."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from dforce.benchmarks.align import methods
from dforce.benchmarks.align.methods import GRADIENT, TASKS, Bed, make_bed
from dforce.config import require_name
from dforce.runs.jobs import Job, slug
from dforce.runs.shards import Shard, counts, read_shard, write_shard

BASE = "base"  # the model before, judged like a method


class Part(NamedTuple):
    """One run of a method."""

    seed: int
    trial: int | None = None    # its number, on the tuning seed; None for a run that is reported
    classes: int | None = None  # how many it is tuned on, None for all

    @property
    def name(self) -> str:
        if self.trial is not None:
            return f"trial {self.trial}"
        return f"seed {self.seed}" if self.classes is None else f"on {self.classes}, seed {self.seed}"


@dataclass(frozen=True)
class AlignBenchmark:
    """What is asked for, and where its results are. The keys are explained in configs/verbs/benchmark/align.yaml."""

    tasks: list[str]
    methods: dict[str, dict[str, Any]]
    only: list[str] | None
    seeds: int
    tune_seed: int
    epochs: int
    samples: int
    points: int
    steps: int
    spacing: str
    judged: int
    searched: int
    spread: list[int]
    spread_methods: list[str]
    accuracy: float
    diversity: float
    weak_steps: int
    judge_steps: int
    folder: Path = Path()

    def __post_init__(self) -> None:
        for task in self.tasks:
            require_name(task, TASKS, "no task")

    @property
    def judge_folder(self) -> Path:
        return self.folder / "models" / "judge"

    @property
    def weak_folder(self) -> Path:
        return self.folder / "models" / "weak"

    def bed(self, task: str) -> Bed:
        return _bed(task, self.weak_folder, self.judge_folder, self.steps, self.spacing)

    def methods_of(self, task: str) -> dict[str, dict[str, Any]]:
        """Those that the task has: a search by gradient wants a reward that has one."""
        for name in self.only or []:
            require_name(name, self.methods, "no method")
        return {name: node for name, node in self.methods.items() if (not self.only or name in self.only)
                and (task == "class" or node.get("search") not in GRADIENT)}

    def parts(self, method: str) -> list[Part]:
        """The runs of a method, in the order in which they are done."""
        seeds = range(self.seeds)
        if method == BASE:
            return [Part(self.tune_seed), *(Part(seed) for seed in seeds)]
        trials = [Part(self.tune_seed, trial=i) for i in range(len(self.trials(method)))]
        several = self.spread if method in self.spread_methods else []
        return [*(trials if len(trials) > 1 else []), *(Part(seed) for seed in seeds),
                *(Part(seed, classes=count) for count in several for seed in seeds)]

    def trials(self, method: str) -> list[dict[str, Any]]:
        return self.methods[method].get("trials") or [{}]

    def read(self, task: str, method: str, part: Part) -> Shard | str:
        """The result, or why there is none."""
        try:
            return read_shard(self.file(task, method, part), self.identity(task, method, part))
        except LookupError as missing:
            return str(missing)

    def file(self, task: str, method: str, part: Part) -> Path:
        return self.folder / "shards" / task / slug(method) / f"{slug(part.name)}.jsonl"

    def identity(self, task: str, method: str, part: Part) -> dict[str, Any]:
        """All that the result follows from. LookupError while the trials that it is chosen by are not all there."""
        about: dict[str, Any] = {"task": task, "steps": self.steps, "spacing": self.spacing,
                                 "judge_steps": self.judge_steps}
        if task == "class":
            about["weak_steps"] = self.weak_steps
        about |= {"seed": part.seed, "classes": part.classes, "count": self.count(method, part)}
        if method == BASE:
            return about
        node = {key: value for key, value in self.methods[method].items() if key != "trials"}
        if "algorithm" in node:
            about |= self.budget(part)
        return {**about, "node": node, "setting": self.setting(task, method, part)}

    def budget(self, part: Part) -> dict[str, int]:
        """Of an algorithm. Trials are judged at their end alone."""
        return {"epochs": self.epochs, "samples": self.samples,
                "points": self.points if part.trial is None else 1}

    def count(self, method: str, part: Part) -> int:
        many = self.searched if "search" in self.methods.get(method, {}) else self.judged
        return many if part.trial is None else many // 2

    def setting(self, task: str, method: str, part: Part) -> dict[str, Any]:
        """Of a trial its own; else that of the best trial."""
        trials = self.trials(method)
        if part.trial is not None or len(trials) == 1:
            return trials[part.trial or 0]
        return trials[self.best(task, method)]

    def best(self, task: str, method: str) -> int:
        """The highest reward of the trials that keep accuracy and diversity; where none does, the least damage."""
        base = self.read(task, BASE, Part(self.tune_seed))
        shards = [self.read(task, method, part) for part in self.parts(method) if part.trial is not None]
        whole = [shard for shard in shards if isinstance(shard, Shard)]
        if not isinstance(base, Shard) or len(whole) < len(shards):
            raise LookupError(f"the trials of {method} are not all there")
        before, scores = base.header["summary"], []
        for shard in whole:
            now = shard.header["summary"]
            lost = max(0.0, min(self.accuracy, before["accuracy"]) - now["accuracy"])
            lost += max(0.0, self.diversity - now["diversity"] / before["diversity"])
            scores.append((-lost, now["reward"]))
        return max(range(len(scores)), key=scores.__getitem__)


@cache
def _bed(task: str, weak: Path, judge: Path, steps: int, spacing: str) -> Bed:
    return make_bed(task, weak=weak, judge=judge, steps=steps, spacing=spacing)


def align_jobs(bench: AlignBenchmark) -> Iterator[Job]:
    """The judge and the weak model; of each task the model before, all trials, then seed after seed."""
    yield Job("judge", (), (bench.judge_folder / "classifier.json").is_file,
              partial(methods.make_judge, bench.judge_folder, bench.judge_steps))
    if "class" in bench.tasks:
        yield Job("weak model", (), (bench.weak_folder / "layout.json").is_file,
                  partial(methods.make_weak, bench.weak_folder, bench.weak_steps))
    for task in bench.tasks:
        first = ("judge", *(["weak model"] if task == "class" else []))
        runs = [(BASE, part) for part in bench.parts(BASE)]
        runs += [(method, part) for method in bench.methods_of(task) for part in bench.parts(method)]
        bases = tuple(_name(task, BASE, part) for part in bench.parts(BASE))
        order = sorted(runs, key=lambda run: (run[0] != BASE, run[1].trial is None, run[1].seed,
                                               run[1].classes is not None))
        for method, part in order:
            trials = tuple(_name(task, method, other) for other in bench.parts(method) if other.trial is not None)
            needs = (*first, *(bases if method != BASE else ()), *(trials if part.trial is None else ()))
            yield Job(_name(task, method, part), needs, partial(counts, partial(bench.read, task, method, part)),
                      partial(make_result, bench, task, method, part))


def _name(task: str, method: str, part: Part) -> str:
    return f"{task}, {method}, {part.name}"


def make_result(bench: AlignBenchmark, task: str, method: str, part: Part) -> None:
    """One run of a method, into its file."""
    bed, count = bench.bed(task), bench.count(method, part)
    if method == BASE:
        made, setting = methods.MethodResult(methods.policy_samples(bed, bed.model.denoiser, count, part.seed)), {}
    else:
        node, setting = bench.methods[method], bench.setting(task, method, part)
        if "algorithm" in node:
            classes = None if part.classes is None else range(part.classes)
            made = methods.run_algorithm(bed, node, setting, seed=part.seed, count=count, classes=classes,
                                         budget=bench.budget(part))
        else:
            made = methods.run_search(bed, node, setting, seed=part.seed, count=count)
    about = {"summary": made.samples.summary(), "queries": made.queries, "a_sample": made.a_sample,
             "work_seconds": round(made.seconds, 3), "points": made.points, "chosen": setting}
    write_shard(bench.file(task, method, part), bench.identity(task, method, part), about, made.samples.lines())
