"""The planning benchmark: jobs over processes and kills, tuning apart from what is reported, rows as by hand."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from dforce.benchmarks.planning.benchmark import PlanningBenchmark, benchmark_jobs, criterion, tuning_identity
from dforce.benchmarks.planning.suite import label, read_suite, split_label
from dforce.benchmarks.planning.tables import planning_tables
from dforce.benchmarks.planning.trainings import ModelTraining
from dforce.cli.compose import changed_suite, composed
from dforce.cli.main import main
from dforce.config import read
from dforce.data import make_maze_dataset
from dforce.envs import MAZES
from dforce.planning.baselines.drivers import run_driver, straight_driver
from dforce.planning.evaluation import aggregate_rows, common, paired_rows, pooled
from dforce.planning.scores import ScoreReport, blocked_mask, score_report
from dforce.planning.tasks import Task, get_task
from dforce.report.rows import read_results
from dforce.report.statistics import bootstrap_interval, interquartile_mean, paired_difference, resampled
from dforce.report.statistics import probability_of_improvement as above
from dforce.report.table import csv_table
from dforce.runs.folder import Invocation
from dforce.runs.jobs import Job, claims_in, run_jobs
from dforce.runs.training_run import Keeper
from dforce.runs.trajectory_training import TrajectoryTraining
from dforce.train.checkpoint import model_of

ROOT = Path(__file__).resolve().parents[2]
SPENT = ("plan_seconds", "episode_seconds")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("minari")
    make_maze_dataset("umaze", steps=20_000, name="dforce/small-v1", root=root)
    return root


@pytest.fixture(autouse=True)
def _elsewhere(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(store))
    monkeypatch.setattr("dforce.runs.jobs.WAIT", 0.05)


# suites

SUITE: dict[str, Any] = {
    "seeds": 2, "episodes": 6, "tune": {"seed": 1001, "episodes": 5}, "models": {},
    "executors": {"tracking": {"_target_": "dforce.planning.control.tracking"},
                  "diffused": {"_target_": "dforce.planning.control.diffused_action"}},
    "methods": {
        "straight": {"driver": {"_target_": "dforce.planning.baselines.drivers.straight_in"}},
        "retrieval": {"planner": {"_target_": "dforce.planning.baselines.drivers.retrieval_planner"},
                      "tune": {"slack": [0.0, 0.2]}},
        "few": {"planner": {"_target_": "dforce.planning.baselines.drivers.retrieval_planner", "arrive": 0.3},
                "tune": "retrieval", "episodes": 4, "executors": ["diffused"]},
        "cloning": {"driver": {"_target_": "dforce.planning.baselines.cloning.behaviour_cloning", "steps": 5,
                               "width": 8},
                    "tune": {"reach": [20, 50]}},
    },
    "pairs": [["retrieval", "straight"], ["retrieval / diffused", "retrieval / tracking"], ["few", "retrieval"]],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**SUITE, **changes}


def with_method(name: str, **changes: Any) -> dict[str, Any]:
    return changed(methods={**SUITE["methods"], name: {**SUITE["methods"].get(name, {}), **changes}})


@pytest.mark.parametrize(("text", "told"), [
    (changed(tune={"seed": 1}), "one of the 2 seeds that are reported"),
    (with_method("cloning", tune={"reach": [20]}), "same number of trials, got {'retrieval': 2, 'cloning': 1}"),
    (with_method("few", tune="retreival"), "no method that is tuned; did you mean 'retrieval'"),
    (with_method("few", executors=["difused"]), "no executor 'difused'; did you mean 'diffused'"),
    (with_method("few", model="forcing"), "no model 'forcing'"),
    (with_method("few", replan=3), "no key 'replan'; did you mean 'replan_every'"),
    (with_method("straight", planner={}), "one of the two"),
    (with_method("straight", shrink=True), "drives itself"),
    (with_method("a, b", driver={"_target_": "dforce.planning.baselines.drivers.straight_in"}), "no ','"),
    (changed(pairs=[["retrieval", "strait"]]), "no method 'strait'; did you mean 'straight'"),
    (changed(pairs=[["few / tracking", "straight"]]), "'few' has no executor 'tracking'"),
    (changed(eposides=3), "no key 'eposides'; did you mean 'episodes'"),
    (with_method("retrieval", planner={"_target_": "dforce.planning.baselines.drivers.retrieval_planner",
                                       "slak": 1}), "slack"),
])
def test_a_suite_that_cannot_be_meant_is_refused(text: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as error:
        read_suite(text)
    assert told in str(error.value)


@pytest.mark.parametrize("method", ["MCTG n=4", "MCTG n=4 - Diffuser"])
@pytest.mark.parametrize("executor", ["fast tracking", ""])
def test_a_label_comes_apart_as_it_was_put_together(method: str, executor: str) -> None:
    assert split_label(label(method, executor)) == (method, executor)


def test_methods_can_be_kept_and_left_out() -> None:
    assert list(read_suite(SUITE, methods=["straight"]).methods) == ["straight"]
    assert read_suite(SUITE, methods=["straight"]).pairs == []
    assert len(read_suite(SUITE).pairs) == 3
    left_out = read_suite(changed(methods={**SUITE["methods"], "few": None}))
    assert "few" not in left_out.methods and len(left_out.pairs) == 2
    with pytest.raises(ValueError, match="takes its settings from 'retrieval'"):
        read_suite(SUITE, methods=["few"])
    with pytest.raises(ValueError, match="no method 'strait'; did you mean 'straight'"):
        read_suite(SUITE, methods=["strait"])


COMPOSED: set[frozenset[tuple[str, str | None]]] = set()


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "suites").glob("*.yaml")), ids=lambda file: file.stem)
@pytest.mark.quick(4)
def test_every_shipped_suite_is_one_and_all_its_trainings_compose(file: Path) -> None:
    text = changed_suite(file, {})
    suite = read_suite(text, files=[file])
    assert suite.seeds >= 3 and suite.episodes >= 100 and suite.tune_seed not in range(suite.seeds)
    tried = {tuple(method.tune["scale"]) for method in suite.methods.values()
             if isinstance(method.tune, dict) and "scale" in method.tune and "energy" not in method.node}
    assert len(tried) == 1  # one list for all that are guided by the same energy
    if file.stem.endswith("paper"):
        published = suite.methods["Diffuser"]
        assert published.tune is None and (published.node["order"], published.node["eta"]) == (1, 1.0)
    for model in suite.models.values() if file.stem.startswith(("maze2d", "ogbench-medium")) else ():
        assert model.overrides["horizon"] % model.overrides["stack"] == 0
        shape = frozenset((key, value if isinstance(value, str) else None) for key, value in model.overrides.items())
        if shape not in COMPOSED:  # sets of keys and choices recur with other numbers: one of each is composed
            COMPOSED.add(shape)
            cfg = composed("train", {**model.overrides, "data": "any", "seed": 0, "out": None})
            assert cfg["horizon"] == model.overrides["horizon"] and cfg["data"] == "any"
    small = read_suite(text, fast=True)
    assert small.seeds == 1 and {len(method.trials) for method in small.methods.values()} == {0, 2}


# pooling


def executed(seed: int, count: int = 8) -> tuple[Any, np.ndarray]:
    maze = MAZES["umaze"]
    starts, goals = get_task("maze2d-umaze").starts(count, seed)
    return run_driver(maze, straight_driver, starts, goals, steps=60), blocked_mask(maze, starts, goals)


def test_pooled_rows_are_those_of_a_direct_computation() -> None:
    runs, masks = zip(*(executed(seed) for seed in range(3)), strict=True)
    direct = score_report(MAZES["umaze"], runs, masks)
    lines = []
    for seed, (run, mask) in enumerate(zip(runs, masks, strict=True)):
        report = score_report(MAZES["umaze"], [run], [mask])._replace(seed=np.full(len(mask), seed))
        lines += report.episodes(task="t", method="m", variant={"executor": "e", "scale": 0.5})
    lines = json.loads(json.dumps(lines[::-1]))  # the order of the files does not matter
    (key, report), = pooled(lines).items()
    assert key == ("t", "m", json.dumps({"executor": "e", "scale": 0.5}))
    named: dict[str, Any] = {"task": "t", "method": "m", "variant": {"executor": "e", "scale": 0.5}}
    assert report.rows(**named) == direct.rows(**named)
    all_starts, _ = aggregate_rows("t", "m", {}, report)
    assert all_starts["value"] == pytest.approx(stats.trim_mean(direct.values["score"], 0.25))
    assert all_starts["low"] <= all_starts["value"] <= all_starts["high"] and all_starts["seeds"] == 3


def test_the_aggregates_are_those_of_others() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=40).round(1), rng.normal(0.3, 1, size=40).round(1)
    assert interquartile_mean(a) == pytest.approx(stats.trim_mean(a, 0.25))
    assert interquartile_mean(np.array([1.0, 2, 4])) == pytest.approx((0.25 * 1 + 2 + 0.25 * 4) / 1.5)
    found = above(a, b, np.repeat([0, 1], 20))
    wins, ties = sum(a > b), sum(a == b)  # start by start
    assert found.value == pytest.approx((wins + ties / 2) / 40) and found.low < found.value < found.high
    assert above(a, a, np.zeros(40)) == (0.5, 0.5, 0.5, 40) and above(a + 2, a, np.zeros(40)) == (1, 1, 1, 40)
    uneven = np.repeat([0, 1, 2], [25, 5, 10])  # the mean's interval is that of the other bootstrap
    by_hand = bootstrap_interval(a, uneven, rng=np.random.default_rng(1), draws=20_000)
    mean = resampled(lambda samples: samples.mean(1), a, uneven, draws=20_000)
    assert (mean.low, mean.high) == pytest.approx((by_hand.low, by_hand.high), abs=0.02)
    one_seed = resampled(lambda samples: samples.mean(1), a, np.zeros(40))
    assert one_seed.high - one_seed.low == pytest.approx(2 * 1.96 * a.std() / 40**0.5, rel=0.15)


def report_of(score: np.ndarray, seed: list[int], blocked: list[bool]) -> ScoreReport:
    return ScoreReport({"score": score, "return": score}, np.array(seed), np.array(blocked))


def test_a_pair_is_compared_on_the_starts_that_both_played() -> None:
    a = report_of(np.array([1.0, 2, 3, 4, 5, 6]), [0, 0, 0, 1, 1, 1], [True, False, False] * 2)
    b = report_of(np.array([0.0, 9, 8, 7]), [1, 1, 2, 2], [True, False, True, False])
    left, right = common(a, b)
    assert left.values["score"].tolist() == [4, 5] and right.values["score"].tolist() == [0, 9]
    rows = paired_rows("t", "a - b", a, b)
    found = {(row["metric"], row["variant"]["starts"]): row for row in rows}
    assert found["score_difference", "all"]["value"] == 0 and found["score_difference", "blocked"]["value"] == 4
    assert found["score_difference", "all"]["low"] == paired_difference(np.array([4.0, 5]), np.array([0.0, 9])).low
    assert found["probability_of_improvement", "all"]["value"] == 0.5
    with pytest.raises(ValueError, match="none in common"):
        common(a, report_of(np.zeros(1), [7], [True]))
    with pytest.raises(ValueError, match="same places"):
        common(a, report_of(np.zeros(1), [1], [False]))


def test_without_reference_scores_a_pair_is_compared_by_return_and_success() -> None:
    seed, blocked = np.array([0, 0, 1]), np.array([False, True, True])
    a, b = (ScoreReport({"return": values, "success": (values > 0).astype(float)}, seed, blocked)
            for values in (np.array([4.0, 2, 0]), np.array([1.0, 0, 0])))
    found = {(row["metric"], row["variant"]["starts"]): row["value"] for row in paired_rows("t", "a - b", a, b)}
    assert found["return_difference", "all"] == pytest.approx(5 / 3) and found["return_difference", "blocked"] == 1
    assert found["success_difference", "all"] == pytest.approx(1 / 3) and found["success_difference", "blocked"] == 0.5


def test_the_demo_trains_and_guides_what_the_benchmark_does_for_its_maze() -> None:
    demo = composed("demo", {})
    text = yaml.safe_load((ROOT / "configs/suites/maze2d-umaze-cpu.yaml").read_text(encoding="utf-8"))
    trained = composed("train", {**text["train"], **text["models"]["forcing"]})
    for part in ("objective", "net", "schedule", "horizon", "stack", "batch"):
        assert demo["train"][part] == trained[part], part
    planner = demo["plan"]["planner"]
    assert {key: demo["train"]["fit"][key] for key in ("steps", "lr")} == {
        key: trained["fit"][key] for key in ("steps", "lr")}
    assert planner["scale"] in text["scales"]
    wanted = text["methods"]["best of 4"]["planner"]
    assert {key: planner[key] for key in ("_target_", "steps", "delay", "n")} == {
        key: wanted[key] for key in ("_target_", "steps", "delay", "n")}
    tree = text["methods"]["MCTG n=4"]["planner"]
    assert planner["draws"] == 1 and demo["methods"]["MCTG"]["draws"] == tree["draws"]


# tuning and evaluation


def bench(out: Path, asked: list[tuple[int, int]] | None = None, text: dict[str, Any] = SUITE) -> PlanningBenchmark:
    """A benchmark of methods without networks, in short episodes; `asked` notes which starts are drawn."""
    task = get_task("maze2d-umaze")

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if asked is not None:
            asked.append((n, seed))
        return task.draw(n, seed)

    short: Task = task._replace(steps=40, draw=draw)
    return PlanningBenchmark(read_suite(text), short, "dforce/small-v1", out, out / "models", lambda model, seed: {},
                 tell=lambda text: said.append(text))


said: list[str] = []


def rows_of(bench: PlanningBenchmark) -> list[dict[str, Any]]:
    return [row for row in planning_tables(bench).rows if row["metric"] not in SPENT]


def header_of(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text().splitlines()[0].partition(" ")[2])


def files_of(folder: Path) -> dict[str, list[str]]:
    return {path.name: path.read_text().splitlines()[1:] for path in sorted(folder.glob("*/*.jsonl"))}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, store: Path) -> tuple[PlanningBenchmark, list[tuple[int, int]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(store))
        asked: list[tuple[int, int]] = []
        whole = bench(tmp_path_factory.mktemp("whole"), asked)
        outcome = run_jobs(benchmark_jobs(whole, {}), claims_in(whole.out / "locks"))
        assert outcome.left == [] and outcome.failed == {}
    return whole, asked


@pytest.mark.slow
def test_tuning_sees_its_own_starts_only_and_every_method_has_as_many_trials(
        finished: tuple[PlanningBenchmark, list[tuple[int, int]]]) -> None:
    whole, asked = finished
    tunings = sum(isinstance(method.tune, dict) for method in whole.suite.methods.values())
    assert asked == [(5, 1001)] * tunings + [(6, 0)] * 4 + [(6, 1)] * 4
    for name in ("retrieval", "cloning"):
        header = header_of(whole.tuning_file(name))
        assert [trial["settings"] for trial in header["trials"]] == whole.suite.methods[name].trials
        best = max(header["trials"], key=lambda trial: trial["criterion"])
        assert header["chosen"] == best["settings"] and len(header["trials"]) == 2
    lines = [json.loads(line) for line in whole.tuning_file("retrieval").read_text().splitlines()[1:]]
    chosen = [line for line in lines if line["slack"] == 0.2 and line["method"] == "retrieval, tracking"]
    values, blocked = np.array([e["score"] for e in chosen]), np.array([e["blocked"] for e in chosen], bool)
    trial = header_of(whole.tuning_file("retrieval"))["trials"][1]
    assert blocked.any() and trial["criterion"] == pytest.approx((values.mean() + values[blocked].mean()) / 2)
    assert criterion(report_of(values, [0] * 5, [False] * 5)) == pytest.approx(values.mean())


def test_a_method_is_tuned_on_the_networks_of_all_its_seeds(tmp_path: Path) -> None:
    guided = {"model": "forcing", "planner": {"_target_": "dforce.planning.planner.DiffusionPlanner"},
              "tune": {"scale": [0.1, 0.3]}, "executors": ["tracking"]}
    one = {**guided, "model": "single"}
    text = {**SUITE, "models": {"forcing": {"net": "recurrent"}, "single": {"net": "recurrent", "seeds": 1}},
            "methods": {**SUITE["methods"], "guided": guided, "lonely": one}}
    whole = replace(bench(tmp_path, text=text), trained=lambda model, seed: {model: seed})
    seen = {name: tuning_identity(whole, whole.suite.methods[name])["network"]
            for name in ("guided", "lonely", "retrieval")}
    assert seen == {"guided": [{"forcing": 0}, {"forcing": 1}], "lonely": [{"single": 0}], "retrieval": None}
    trainings = {(model, seed): Job(f"train {model}-{seed}", (), lambda: True, lambda: None)
                 for model, seed in (("forcing", 0), ("forcing", 1), ("single", 0))}
    needs = {job.name: job.needs for job in benchmark_jobs(whole, trainings)}
    assert needs["tune guided"] == ("train forcing-0", "train forcing-1") and needs["tune retrieval"] == ()


def test_all_rows_are_there_and_a_borrowed_choice_is_the_lender_s(
        finished: tuple[PlanningBenchmark, list[tuple[int, int]]]) -> None:
    whole, _ = finished
    tables = planning_tables(whole)
    methods = {row["method"] for row in tables.rows if row["task"] == "maze2d-umaze"}
    assert methods == {"straight", "retrieval, tracking", "retrieval, diffused", "few, diffused", "cloning"}
    chosen = header_of(whole.tuning_file("retrieval"))["chosen"]
    few = [row for row in tables.rows if row["method"] == "few, diffused" and row["metric"] == "score"]
    assert few[0]["n"] == 8 and few[0]["seeds"] == 2 and chosen.items() <= few[0]["variant"].items()
    names = {row["method"] for row in tables.rows if row["task"].endswith("paired differences")}
    assert names == {"retrieval - straight, tracking", "retrieval - straight, diffused",
                     "retrieval, diffused - retrieval, tracking", "few - retrieval, diffused"}
    assert all(row["variant"]["executor"] for row in tables.rows if row["task"] == "maze2d-umaze")
    lines = csv_table(tables.rows).splitlines()
    assert len(lines) == 1 + len(tables.rows) and lines[0].startswith("task,method,starts,executor")


@pytest.mark.slow
def test_a_benchmark_that_was_stopped_often_ends_as_one_that_was_not(
        finished: tuple[PlanningBenchmark, list[tuple[int, int]]], tmp_path: Path) -> None:
    whole, _ = finished
    counts = iter(range(100))
    while True:
        piece = bench(tmp_path)
        done = iter([False, False, True])  # two looks, so two jobs a run
        outcome = run_jobs(benchmark_jobs(piece, {}), claims_in(tmp_path / "locks"), late=lambda: next(done, True))  # noqa: B023
        if not outcome.left:
            break
        assert next(counts) < 20
    assert next(counts) == 4  # ten jobs in five runs
    assert files_of(tmp_path) == files_of(whole.out) and rows_of(piece) == rows_of(whole)


@pytest.mark.slow
def test_what_is_damaged_or_meant_otherwise_is_made_again_and_nothing_else(
        finished: tuple[PlanningBenchmark, list[tuple[int, int]]], tmp_path: Path) -> None:
    whole, _ = finished
    shutil.copytree(whole.out, tmp_path, dirs_exist_ok=True)
    damaged = whole.shard_file("straight", 1).relative_to(whole.out)
    content = bytearray((tmp_path / damaged).read_bytes())
    content[-30] ^= 1
    (tmp_path / damaged).write_bytes(content)
    said.clear()
    done: list[str] = []
    text = with_method("cloning", tune=None)
    again = bench(tmp_path, text=text)
    run_jobs(benchmark_jobs(again, {}), claims_in(tmp_path / "locks"), tell=lambda name, left: done.append(name))
    assert done == ["play cloning-0", "play straight-1", "play cloning-1"]
    assert any("straight-1.jsonl is damaged" in line for line in said)
    assert any("cloning-0.jsonl was made with other settings (settings.reach" in line for line in said)
    assert (tmp_path / damaged).read_text().splitlines()[1:] == files_of(whole.out)[damaged.name]


# the verb

TINY: dict[str, Any] = {
    "seeds": 1, "episodes": 3, "tune": {"seed": 9, "episodes": 2},
    "train": {"horizon": 60, "stack": 10, "batch": 4, "held_out": 0, "fit.steps": 12, "fit.warmup": 2,
              "fit.precision": "fp32", "save_every": 4},
    "models": {"forcing": {"net": "recurrent", "net.width": 8}},
    "executors": SUITE["executors"],
    "methods": {"straight": SUITE["methods"]["straight"],
                "guided": {"model": "forcing", "tune": {"scale": [0.1, 0.2]},
                           "planner": {"_target_": "dforce.planning.planner.DiffusionPlanner", "steps": 3,
                                       "scale": 1.0}}},
    "pairs": [["guided", "straight"]], "curves": {"scale": {"over": "scale", "methods": ["guided"]}},
    "learning": {"methods": ["guided"], "episodes": 2},
    "fast": {"train": {"fit.warmup": 3}},
}


def ran(out: str, *more: str, code: int = 0, text: dict[str, Any] = TINY) -> Path:
    Path("suite.yaml").write_text(yaml.safe_dump(text))
    assert main(["benchmark", "planning", "suite=suite.yaml", "fast_dev_run=true", f"out={out}", *more]) == code
    return Path(out)


def stopping(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a training signals its process after that step."""
    write = Keeper.write

    def signalling(self: Keeper, log: Any, **due: bool) -> None:
        write(self, log, **due)
        if log.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Keeper, "write", signalling)


@pytest.mark.slow
def test_the_verb_leaves_tables_and_a_page_and_names_no_network_where_there_is_none() -> None:
    out = ran("run", "methods=[straight]")
    assert (out / "STATUS").read_text() == "done\n" and not list(out.glob("models/*"))
    assert {path.name for path in (out / "media").iterdir()} == {"captions.json", "starts.png"}
    page = (out / "index.html").read_text()
    for told in ("Every method on the same starts", "score_latched, all", "return_latched, all", "straight"):
        assert told in page
    assert "| straight |" in (out / "tables.md").read_text()


@pytest.mark.slow
def test_a_planner_of_ones_own_is_compared_as_the_documentation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    for kind, file in (("python", "mine.py"), ("yaml", "mine.yaml")):
        code = re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)
        assert code is not None
        Path(file).write_text(code[1], encoding="utf-8")
    command = re.search(r"dforce (benchmark planning suite=mine.yaml .*)", page)
    assert command is not None
    monkeypatch.syspath_prepend(str(Path.cwd()))
    assert main([*shlex.split(command[1]), "fast_dev_run=true"]) == 0
    rows = read_results(Path("runs/mine/results.json")).rows
    assert {"line, tracking", "straight"} <= {row["method"] for row in rows}
    assert any(row["method"].startswith("line - straight") for row in rows)


@pytest.mark.slow
def test_the_verb_goes_on_after_a_kill_within_training(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ran("whole")
    assert (whole / "STATUS").read_text() == "done\n" and (whole / "index.html").is_file()
    assert {"starts.png", "scale.png", "compute.png", "differences.png", "learning.png", "score tracking.png"} <= {
        path.name for path in (whole / "media").iterdir()}
    for name in ("tables.md", "tables.csv", "episodes.jsonl"):
        assert "guided, tracking" in (whole / name).read_text()
    with monkeypatch.context() as patch:
        stopping(6, patch)
        cut = ran("cut", code=143)
    assert sorted(path.name for path in (cut / "models/forcing-0/checkpoints").iterdir())[-1] == "step_00000007"
    ran("cut")
    rows = [[row for row in read_results(out / "results.json").rows if row["metric"] not in SPENT]
            for out in (whole, cut)]
    assert rows[0] == rows[1] and {row["metric"] for row in rows[0]} >= {"score", "score_latched", "return", "success",
                                                                       "return_latched", "score_iqm", "plan_tokens"}
    learnt = [row for row in rows[0] if row["task"] == "maze2d-umaze, over training"]
    assert {row["variant"]["step"] for row in learnt} == {4, 8, 12}
    assert files_of(whole) == files_of(cut)


@pytest.mark.slow
def test_the_verb_stops_at_its_limit_and_trains_anew_what_is_meant_otherwise(
        capsys: pytest.CaptureFixture[str]) -> None:
    out = ran("late", "limit=0.001", "methods=[guided]")
    assert (out / "STATUS").read_text().startswith("stopped: ") and "jobs left" in capsys.readouterr().out
    ran("late", "methods=[guided]")
    assert (out / "STATUS").read_text() == "done\n"
    other = {**TINY, "models": {"forcing": {"net": "recurrent", "net.width": 12}}}
    ran("late", "methods=[guided]", text=other)
    told = capsys.readouterr().out
    assert "forcing-0 was trained with other settings (net.width: 8, now 12): it is trained anew" in told
    assert (out / "models" / "forcing-0.old-1").is_dir() and "guided.jsonl was made with other settings" in told


def test_a_run_that_names_old_places_counts(tmp_path: Path) -> None:
    cfg = composed("train", {"data": "any", "seed": 0})
    out = tmp_path / "forcing-0"
    training = ModelTraining("forcing-0", read(cfg, TrajectoryTraining, model=model_of(cfg)),
                             Invocation("train", "", cfg, frozenset(), str(out)), cfg)
    assert training.state() == ("none", "")
    old = yaml.safe_dump(cfg)
    for new, before in (("dforce.core.loss.", "dforce.loss."), ("dforce.train.fit.fit", "dforce.fit.fit"),
                        ("dforce.train.objectives.Forcing", "dforce.loss.Forcing"), ("dforce.core.sch", "dforce.sch")):
        assert new in old
        old = old.replace(new, before)
    out.mkdir()
    (out / "config.yaml").write_text(old)
    assert training.state() == ("begun", "") and training.settings == training.wanted
    (out / "config.yaml").write_text(old.replace("fused_snr", "v_weight"))
    assert training.state()[0] == "other" and "fused_snr" in training.state()[1]


@pytest.mark.slow
def test_a_plain_training_of_the_same_settings_counts(capsys: pytest.CaptureFixture[str]) -> None:
    out = ran("bench", "methods=[]", "models=[forcing]")
    settings = yaml.safe_load((out / "models/forcing-0/config.yaml").read_text())
    command = ["train", *(f"{key}={settings[key]}" for key in ("data", "horizon", "stack", "batch", "held_out"))]
    command += [f"fit.{key}={settings['fit'][key]}" for key in ("steps", "warmup", "precision")]
    assert main([*command, "net.width=8", "save_every=100", "out=bench2/models/forcing-0"]) == 0
    capsys.readouterr()
    ran("bench2")
    assert "train forcing" not in capsys.readouterr().out
    ran("bench2")
    assert " left)" not in capsys.readouterr().out  # there was nothing to do
    assert files_of(Path("bench2"))["guided-0.jsonl"] == files_of(ran("bench"))["guided-0.jsonl"]


def test_wrong_words_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in ((["task=maze2d-umase"], "did you mean 'maze2d-umaze'"), (["size=huge"], "no configuration"),
                        (["suite=none.yaml"], "none.yaml is no file"), (["methods=[MCTH]"], "no method 'MCTH'"),
                        (["episods=3"], "did you mean 'episodes'")):
        assert main(["benchmark", "planning", *words, "out=x"]) == 2
        assert told in capsys.readouterr().err
