"""The alignment benchmark: methods that must coincide with plain sampling, what is chosen, what is counted."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dforce.align.rewards.builtin import Jpeg
from dforce.benchmarks.align.methods import Bed, ScoredSamples, make_bed, policy_samples, run_algorithm, run_search
from dforce.benchmarks.align.runs import BASE, AlignBenchmark, Part, align_jobs
from dforce.benchmarks.align.tables import Runs, align_tables, diversity_share, draw_all, marks_of
from dforce.cli.main import main
from dforce.config import read
from dforce.images import load_classifier, load_model
from dforce.runs.jobs import check_jobs
from dforce.runs.shards import Shard, write_shard

ROOT = Path(__file__).resolve().parents[2]
BUDGET = {"epochs": 1, "samples": 32, "points": 1}


def bed(reward=None, steps=3) -> Bed:
    return Bed("jpeg", load_model("digits"), load_classifier("digits"), reward or Jpeg(), steps)


def constant(samples, prompts, metadata):
    return 0 * samples.flatten(1).sum(1)


# ------------------------------------------------------------------------------------------- what must be equal

@pytest.mark.parametrize(("reward", "node"), [
    (None, {"search": "best_of_n", "settings": {"n": 1}}),
    (constant, {"search": "best_of_n", "settings": {"n": 3}}),
    (constant, {"search": "demon", "settings": {"draws": 3, "rest": 1}}),
    (None, {"search": "steering", "settings": {"particles": 1, "lam": 5.0, "potential": "max"}}),
    (constant, {"search": "guidance", "settings": {"scale": 3.0}}),
], ids=lambda value: value["search"] if isinstance(value, dict) else "")
def test_a_search_that_has_nothing_to_choose_by_is_plain_sampling(reward, node) -> None:
    one = bed(reward)
    plain = policy_samples(one, one.model.denoiser, 20, 0)
    made = run_search(one, node, {}, seed=0, count=20)
    torch.testing.assert_close(made.samples.x, plain.x, rtol=0, atol=1e-5)
    assert (plain.kl == 0).all()
    if node["search"] == "guidance":
        np.testing.assert_allclose(made.samples.kl, 0, atol=1e-6)


def test_doodl_with_nothing_to_gain_is_edict_from_the_same_noise() -> None:
    one = bed(constant)
    made = [run_search(one, {"search": "doodl", "settings": {"updates": updates}}, {"rate": 0.3}, seed=0, count=20)
            for updates in (1, 2)]
    torch.testing.assert_close(made[0].samples.x, made[1].samples.x, rtol=0, atol=0)


@pytest.mark.parametrize("node", [{"algorithm": "ddpo_is"}, {"algorithm": "ddpo_is", "rank": 2},
                                  {"algorithm": "grpo"}, {"algorithm": "diffusion_dpo"}],
                         ids=lambda node: " ".join(map(str, node.values())))
def test_a_constant_reward_tunes_nothing(node) -> None:
    one = bed(constant)
    plain = policy_samples(one, one.model.denoiser, 20, 0)
    made = run_algorithm(one, node, {}, seed=0, budget=BUDGET, count=20)
    torch.testing.assert_close(made.samples.x, plain.x, rtol=0, atol=1e-5)
    np.testing.assert_allclose(made.samples.kl, 0, atol=1e-4)


def test_tuning_asks_for_its_classes_alone_counts_every_reward_and_leaves_the_model_before() -> None:
    asked: list[int] = []

    def dark(samples, prompts, metadata):
        asked.extend(prompts)
        return -samples.flatten(1).mean(1)

    one = bed(dark)
    before = {name: value.clone() for name, value in one.model.denoiser.state_dict().items()}
    made = run_algorithm(one, {"algorithm": "ddpo_is"}, {"lr": 1e-3}, seed=0, count=20, classes=[1, 2],
                 budget={"epochs": 2, "samples": 16, "points": 1})
    in_training = asked[:-20]  # the last are those of judging
    assert made.queries == 32 == len(in_training)
    assert set(in_training) == {1, 2}
    assert asked[-20:] == [*range(10), *range(10)]
    assert made.samples.kl.mean() > 0.01
    for name, value in one.model.denoiser.state_dict().items():
        assert torch.equal(value, before[name])


def test_queries_of_searches() -> None:
    one, calls = bed(steps=4), []

    def counted(samples, prompts, metadata):
        calls.append(len(samples))
        return samples.flatten(1).mean(1)

    own = Bed(one.task, one.model, one.judge, counted, one.steps)
    for node in ({"search": "best_of_n", "settings": {"n": 5}},
                 {"search": "demon", "settings": {"draws": 3, "rest": 1}},
                 {"search": "steering", "settings": {"particles": 4, "lam": 1.0, "potential": "max"}},
                 {"search": "guidance", "settings": {"scale": 1.0}},
                 {"search": "doodl", "settings": {"updates": 2}}):
        calls.clear()
        made = run_search(own, node, {}, seed=0, count=10)
        judging = 10 + (10 * one.steps if node["search"] == "guidance" else 0)  # the KL replays what guidance did
        assert made.a_sample * 10 == sum(calls) - judging, node["search"]


def test_of_two_samples_a_class_the_diversity_has_no_interval(tmp_path: Path) -> None:
    x, label = torch.randn(8, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4
    samples = ScoredSamples(x, label, np.zeros(8), np.ones(8), None)
    summary = json.loads(json.dumps(samples.summary(), allow_nan=False))
    assert summary["diversity"] > 0 and summary["diversity_low"] is summary["diversity_high"] is None
    shard = Shard({"summary": summary}, samples.lines())
    share = diversity_share(Runs([0], [shard], [shard]))
    assert share.value == 1 and math.isnan(share.low)


def test_unknown_tasks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks are jpeg, class"):
        make_bed("png", weak=tmp_path, judge=tmp_path, steps=2, spacing="index")


# -------------------------------------------------------------------------------------- what is chosen and counted

def benchmark(folder: Path, **more) -> AlignBenchmark:
    cfg = yaml.safe_load((ROOT / "configs" / "verbs" / "benchmark" / "align.yaml").read_text("utf-8"))
    return read({**cfg, "seeds": 2, **more}, AlignBenchmark, folder=folder)


def put(bench: AlignBenchmark, method: str, part: Part, reward: float, *, accuracy: float = 1.0,
        diversity: float = 10.0, gain=lambda label: 0.0, task: str = "jpeg") -> None:
    """A result as if it had been measured: 20 samples, two of each class."""
    lines = [{"sample": i, "label": i % 10, "reward": reward + gain(i % 10), "right": i < 20 * accuracy, "kl": 0.5}
             for i in range(20)]
    summary = {"reward": reward, "accuracy": accuracy, "kl": 0.5, "diversity": diversity,
               "diversity_low": diversity - 1, "diversity_high": diversity + 1, "n": 20}
    about = {"summary": summary, "queries": 100, "a_sample": 2, "work_seconds": 1.5, "chosen": {},
             "points": [{"queries": 100, **summary}]}
    write_shard(bench.file(task, method, part), bench.identity(task, method, part), about, lines)


def test_the_trial_chosen_has_the_highest_reward_of_those_that_do_no_damage(tmp_path: Path) -> None:
    bench = benchmark(tmp_path)
    put(bench, BASE, Part(100), -1.3)
    with pytest.raises(LookupError):
        bench.best("jpeg", "RWR")
    assert bench.read("jpeg", "RWR", Part(0)) == "the trials of RWR are not all there"
    bench.methods["RWR"]["trials"] = [{"lr": 1e-5}, {"lr": 2e-5}, {"lr": 4e-5}]
    for trial, (reward, accuracy, diversity) in enumerate([(-1.25, 0.95, 9.0), (-1.2, 0.95, 8.0), (-0.5, 0.9, 9.0)]):
        put(bench, "RWR", Part(100, trial=trial), reward, accuracy=accuracy, diversity=diversity)
    assert bench.best("jpeg", "RWR") == 1
    assert bench.setting("jpeg", "RWR", Part(0)) == bench.trials("RWR")[1]
    put(bench, "RWR", Part(0), -1.2)
    assert isinstance(bench.read("jpeg", "RWR", Part(0)), Shard)
    put(bench, "RWR", Part(100, trial=1), -1.2, diversity=7.0)      # now the first is chosen, and the run is another's
    assert bench.best("jpeg", "RWR") == 0
    assert "other settings (setting.lr" in str(bench.read("jpeg", "RWR", Part(0)))
    put(bench, "RWR", Part(100, trial=0), -1.25, accuracy=0.5)
    assert bench.best("jpeg", "RWR") == 2                           # none is fit: the least damage


def test_units_need_what_they_read_and_methods_fit_their_task(tmp_path: Path) -> None:
    bench = benchmark(tmp_path)
    found = list(align_jobs(bench))
    check_jobs(found)
    names = [job.name for job in found]
    assert "class, DOODL, seed 0" in names
    assert "jpeg, DOODL, seed 0" not in names and "jpeg, guidance, seed 0" not in names
    needs = {job.name: job.needs for job in found}
    assert {f"jpeg, DPOK, trial {i}" for i in range(3)} <= set(needs["jpeg, DPOK, on 1, seed 1"])
    assert "jpeg, base, seed 100" in needs["jpeg, DPOK, trial 0"]
    with_trials = {name: len(bench.trials(name)) for name in bench.methods_of("class") if len(bench.trials(name)) > 1}
    assert set(with_trials.values()) == {3}                          # as many for every method
    with pytest.raises(ValueError, match="did you mean 'DPOK'"):
        list(align_jobs(benchmark(tmp_path, only=["DPOC"])))


@pytest.mark.slow
def test_rows_are_paired_with_the_model_before_and_split_by_class(tmp_path: Path) -> None:
    bench = benchmark(tmp_path / "run", tasks=["jpeg"], only=["DPOK"], spread=[3], spread_methods=["DPOK"])
    for seed in (100, 0, 1):
        put(bench, BASE, Part(seed), -1.3 - seed, diversity=10.0)
    for trial in range(3):
        put(bench, "DPOK", Part(100, trial=trial), -1.2 - trial)
    for seed in (0, 1):
        put(bench, "DPOK", Part(seed), -1.3 - seed, diversity=8.0, gain=lambda label: 0.25)
        put(bench, "DPOK", Part(seed, classes=3), -1.3 - seed, gain=lambda label: 0.5 if label < 3 else -0.125)
    rows = {(row["task"], row["method"], row["metric"], str(row["variant"].get("tuned on", ""))): row
            for row in align_tables(bench).rows if "trials" not in row["task"]}

    def value(task: str, metric: str, on: str = "", method: str = "DPOK") -> float:
        return rows[task, method, metric, on]["value"]

    assert value("jpeg", "gain") == pytest.approx(0.25)
    assert value("jpeg", "gain", method=BASE) == 0
    assert value("jpeg", "reward") == pytest.approx(-1.8 + 0.25)
    assert value("jpeg", "diversity") == pytest.approx(0.8)
    assert value("jpeg", "queries") == 100 + 100 * 2
    assert value("jpeg, generalisation", "gain seen", "3 of 10 classes") == pytest.approx(0.5)
    assert value("jpeg, generalisation", "gain unseen", "3 of 10 classes") == pytest.approx(-0.125)
    assert value("jpeg, generalisation", "gain seen", "10 of 10 classes") == pytest.approx(0.25)
    assert rows["jpeg, generalisation", "DPOK", "gain unseen", "3 of 10 classes"]["n"] == 2 * 14
    trials = [row for row in align_tables(bench).rows if row["task"] == "jpeg, trials" and row["metric"] == "reward"]
    assert [row["variant"]["chosen"] for row in trials] == [True, False, False]
    marks = marks_of(align_tables(bench).rows, "jpeg")
    assert sum(mark.small for mark in marks) == 3 and sum(not mark.small for mark in marks) == 2
    (tmp_path / "run").mkdir(exist_ok=True)
    assert set(draw_all(align_tables(bench).rows, tmp_path)) == {"frontier_jpeg.png", "curves_jpeg.png"}


# ------------------------------------------------------------------------------------------------------- the speed

def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts" / "studies" / "benchmark"))
    file = ROOT / "scripts" / "studies" / "benchmark" / "align.py"
    spec = importlib.util.spec_from_file_location("benchmark_align_speed", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_batched_replay_has_the_plain_loops_gradient_and_a_wrong_one_is_noticed(
        monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script(monkeypatch)
    own = speed.make_bed("mlp", 3)
    wanted = speed.gradient(partial(speed.Plain, own, 6, 2))
    for size in (1, 3):
        found = speed.gradient(partial(speed.Ours, own, 6, size))
        assert (found - wanted).norm() < 1e-4 * wanted.norm()
    other = speed.gradient(partial(speed.Ours, own, 6, 3, fraction=0.34))
    assert (other - wanted).norm() > 0.1 * wanted.norm()


def test_epochs_to_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = script(monkeypatch)
    assert speed.reached(np.arange(10.0), 4.0) == 7     # the mean of epochs 2..6 is 4: seven epochs were needed
    assert np.isnan(speed.reached(np.zeros(10), 1.0))


# --------------------------------------------------------------------------------------------------------- the verb

@pytest.mark.slow
def test_the_verb_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    ask = ["benchmark", "align", "fast_dev_run=true", "tasks=[jpeg]", "only=[DPOK,'best of 4']",
           "spread_methods=[DPOK]", f"out={out}"]
    assert main([*ask, "limit=0.001"]) == 0
    assert "jobs are left" in (out / "STATUS").read_text("utf-8")
    assert main(ask) == 0
    assert (out / "STATUS").read_text("utf-8").strip() == "done"
    results = json.loads((out / "results.json").read_text("utf-8"))
    methods = {row["method"] for row in results["rows"] if row["task"] == "jpeg"}
    assert methods == {"base", "DPOK", "best of 4"}
    assert (out / "media" / "frontier_jpeg.png").is_file() and (out / "index.html").is_file()
    made = {file: file.stat().st_mtime_ns for file in out.rglob("*.jsonl") if "shards" in file.parts}
    capsys.readouterr()
    assert main(ask) == 0
    assert made == {file: file.stat().st_mtime_ns for file in made}
