"""The jobs of `dforce benchmark align`: models, trials and runs, each a function of files."""

from collections.abc import Iterator
from functools import partial

from dforce.benchmarks.align.methods import (
    MethodResult,
    make_judge,
    make_weak,
    policy_samples,
    run_algorithm,
    run_search,
)
from dforce.benchmarks.align.runs import BASE, AlignBenchmark, Part
from dforce.runs.jobs import Job
from dforce.runs.shards import Shard, write_shard


def align_jobs(bench: AlignBenchmark) -> Iterator[Job]:
    """The judge and the weak model; of each task the model before, all trials, then seed after seed."""
    yield Job("judge", (), (bench.judge_folder / "classifier.json").is_file,
               partial(make_judge, bench.judge_folder, bench.judge_steps))
    if "class" in bench.tasks:
        yield Job("weak model", (), (bench.weak_folder / "layout.json").is_file,
                   partial(make_weak, bench.weak_folder, bench.weak_steps))
    for task in bench.tasks:
        first = ("judge", *(["weak model"] if task == "class" else []))
        runs = [(BASE, part) for part in bench.parts(BASE)]
        runs += [(method, part) for method in bench.methods_of(task) for part in bench.parts(method)]
        bases = tuple(_name(task, BASE, part) for part in bench.parts(BASE))
        order = sorted(runs, key=lambda run: (run[0] != BASE, run[1].trial is None, run[1].seed,
                                               run[1].classes is not None))
        for method, part in order:
            trials = tuple(_name(task, method, other) for other in bench.parts(method) if other.trial is not None)
            needs = first if method == BASE else (*first, *bases) if part.trial is not None else (
                *first, *bases, *trials)
            yield Job(_name(task, method, part), needs, partial(_there, bench, task, method, part),
                       partial(make_result, bench, task, method, part))


def _name(task: str, method: str, part: Part) -> str:
    return f"{task}, {method}, {part.name}"


def _there(bench: AlignBenchmark, task: str, method: str, part: Part) -> bool:
    result = bench.read(task, method, part)
    if isinstance(result, str) and result:
        print(f"made anew: {result}", flush=True)
    return isinstance(result, Shard)


def make_result(bench: AlignBenchmark, task: str, method: str, part: Part) -> None:
    """One run of a method, into its file."""
    bed, count = bench.bed(task), bench.count(method, part)
    if method == BASE:
        made, setting = MethodResult(policy_samples(bed, bed.model.denoiser, count, part.seed)), {}
    else:
        node, setting = bench.methods[method], bench.setting(task, method, part)
        if "algorithm" in node:
            classes = None if part.classes is None else range(part.classes)
            made = run_algorithm(bed, node, setting, seed=part.seed, count=count, classes=classes,
                         budget=bench.budget(part))
        else:
            made = run_search(bed, node, setting, seed=part.seed, count=count)
    about = {"summary": made.samples.summary(), "queries": made.queries, "a_sample": made.a_sample,
             "work_seconds": round(made.seconds, 3), "points": made.points, "chosen": setting}
    write_shard(bench.file(task, method, part), bench.identity(task, method, part), about, made.samples.lines())
