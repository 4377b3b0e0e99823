"""The studies: how far plans spread, how settings are tuned, what a crossing path is, and what walks remember."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from dforce.benchmarks.robot.episodes import RobotEpisode
from dforce.core.schedule import linear
from dforce.planning.control import Plan, tracking
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.tasks import get_task
from dforce.report.rows import write_episodes, write_results
from dforce.train.checkpoint import build_denoiser
from scripts.studies.planning.crossing import CORNER, SIDE, crossings, kinds, levels, walk, windows
from scripts.studies.planning.panels import line_panels, panels_of, path_panels
from scripts.studies.planning.parts import TUNE_SEED, best_trial, end_spread, far_ends, spread_row, starts_of
from scripts.studies.robots.compared import Comparison, records
from tests.gaussian_bed import NonCausal
from tests.small_planner import small

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts" / "studies" / "planning"
UMAZE = get_task("maze2d-umaze")
TIME = np.linspace(0, 1, 21)[:, None]


def line(*corners):
    """The path [P, 2] through corners given in half sides."""
    points = SIDE * np.array(corners, dtype=float)
    return np.concatenate([a + TIME * (b - a) for a, b in zip(points, points[1:], strict=False)])


# ----------------------------------------------------------------------------------------------------------- spread

def test_spread_is_the_root_of_the_total_variance():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(3, 20_000, 2)) * [3.0, 4.0]
    np.testing.assert_allclose(end_spread(points), 5.0, rtol=0.02)
    np.testing.assert_allclose(end_spread(points + [7.0, -2.0]), end_spread(points), rtol=1e-9)      # wherever they are
    np.testing.assert_allclose(end_spread(np.array([[[0.0, 0.0], [2.0, 0.0]]])), 2**0.5)         # by hand
    with pytest.raises(ValueError, match="at least 2"):
        end_spread(points[:, :1])


def test_identical_plans_have_no_spread_and_different_ones_that_of_their_ends():
    starts, goals = starts_of(UMAZE, 3, [0, 1])
    assert starts.shape == (6, 4) and goals.shape == (6, 2)
    np.testing.assert_array_equal(starts[3:], UMAZE.starts(3, 1)[0])

    def planner(shake):
        def plan(obs, goal, remaining, rng):
            states = np.repeat(obs[:, None], remaining, 1)
            states[:, -1, :2] += shake * rng.normal(size=(len(obs), 2))
            return Plan(np.zeros((len(obs), remaining, 2)), states)
        return plan

    same = far_ends(planner(0.0), starts, goals, 5, plans=4)
    assert same.shape == (6, 4, 2)
    np.testing.assert_array_equal(same, np.repeat(starts[:, None, :2], 4, 1))
    row = spread_row(UMAZE, "still", {"delay": 0}, same)
    assert row["value"] == row["low"] == row["high"] == 0.0 and row["n"] == 6
    row = spread_row(UMAZE, "shaken", {}, far_ends(planner(0.5), starts, goals, 5, plans=400))
    assert abs(row["value"] - 0.5 * 2**0.5) < 0.05 and row["low"] < row["value"] < row["high"]


# ----------------------------------------------------------------------------------------------------------- tuning

class Near:
    """Plans to stand at the goal, `off` metres beside it: the score falls as it grows."""

    def __init__(self, off=0.0):
        self.off, self.seen = off, []

    def with_(self, off):
        return Near(off)

    def __call__(self, obs, goal, remaining, rng):
        states = np.concatenate([goal + [self.off, 0.0], np.zeros_like(goal)], 1)
        return Plan(np.zeros((len(obs), remaining, 2)), np.repeat(states[:, None], remaining, 1))


def test_tuning_takes_the_trial_that_scores_best_on_starts_that_are_not_reported():
    task = get_task("maze2d-open")
    trials = [{"off": 3.0}, {"off": 0.0}, {"off": 2.0}]
    best, scores = best_trial(task, Near(), tracking(hold=False), trials, episodes=4)
    assert best.off == 0.0 and scores[1] == max(scores) and len(scores) == 3
    assert TUNE_SEED not in range(100)


# --------------------------------------------------------------------------------------------------------- crossing

@pytest.mark.parametrize("corners, kind", [
    ([(-1, -1), (1, 1)], "trained"),
    ([(-1, 1), (1, -1)], "trained"),
    ([(-1, 1), (0, 0), (1, 1)], "composed"),            # V
    ([(-1, -1), (0, 0), (1, -1)], "composed"),          # its reverse
    ([(-1, -1), (0, 0)], "neither"),                    # stays in the middle
    ([(-1, 1), (1, 1)], "neither"),                     # along the edge
    ([(1, 1), (-1, -1)], "neither"),                    # backwards
    ([(-1, -1), (-1, 1), (1, -1)], "neither"),          # changes sides before it starts
    ([(-1, 1), (0.8, -0.8), (1, 1)], "neither"),        # all but there, then across
    ([(-2, -2), (2, 2)], "neither"),                    # past the corners
])
def test_known_paths_are_what_they_are(corners, kind):
    path = line(*corners)
    assert kinds(path[None]) == [kind]
    assert kinds(path[None] * [1, -1]) == [kind]  # upside down


def test_demonstrations_are_trained_paths_of_both_families():
    paths = crossings(4000, 41, np.random.default_rng(0))
    found = np.array(kinds(paths))
    assert (found == "trained").mean() > 0.99 and not (found == "composed").any()
    assert abs((paths[:, 0, 1] > 0).mean() - 0.5) < 0.03
    corner = SIDE * np.sign(paths[:, [0, -1]])
    np.testing.assert_allclose((paths[:, [0, -1]] - corner).std((0, 1)), CORNER, rtol=0.05)
    # In the middle the families are one: nothing there tells which way a path came.
    middle, rising = paths[:, 20], paths[:, -1, 1] > 0
    np.testing.assert_allclose(middle[rising].mean(0), middle[~rising].mean(0), atol=0.03)
    np.testing.assert_allclose(middle[rising].std(0), middle[~rising].std(0), rtol=0.08)


def test_windows_show_parts_of_demonstrations_and_the_position_before():
    batch_at = windows(tokens=5, stack=4, batch=64, seed=3)
    batch = batch_at(7)
    assert batch.x.shape == (64, 5, 8) and torch.equal(batch.x, batch_at(7).x)
    assert not torch.equal(batch.x, batch_at(8).x)
    start, points = batch.cond["static"]["start"], batch.x.reshape(64, 20, 2)
    step = 2 * SIDE / 20
    torch.testing.assert_close((points[:, 0] - start)[:, 0].mean().item(), step, rtol=0.2, atol=0)
    whole = batch.mask.all(1)
    assert 16 <= whole.sum() < 64 and batch.mask[:, 0].all()
    paths = torch.cat([start[:, None], points], 1)[whole].double().numpy()
    assert set(kinds(paths)) == {"trained"}
    # A window that begins k tokens late shows all but k tokens, and starts k tokens to the right.
    late = 5 - batch.mask.sum(1)
    torch.testing.assert_close(start[:, 0], -SIDE + late * 4 * step, rtol=0, atol=0.8)


# ---------------------------------------------------------------------------------------------------------- walking

@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    config = {"net": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 8}, "predict": "x0",
              "schedule": {"_target_": "dforce.core.schedule.linear", "levels": 50}}
    return build_denoiser(config, {"event_shape": [8], "static": {"start": 2}}).requires_grad_(False)


def test_a_walk_from_all_of_its_past_is_one_from_a_memory_that_holds_it(network):
    starts = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    paths = {memory: walk(network, network.schedule, starts, tokens=4, memory=memory, steps=3)
             for memory in (None, 4, 3, 0)}
    assert paths[None].shape == (3, 17, 2)
    torch.testing.assert_close(paths[None][:, 0], starts, rtol=0, atol=0)
    torch.testing.assert_close(paths[4], paths[None], rtol=0, atol=0)
    torch.testing.assert_close(paths[3], paths[None], rtol=0, atol=0)  # the fourth token has three before it
    torch.testing.assert_close(paths[0][:, :5], paths[None][:, :5], rtol=0, atol=0)
    assert (paths[0][:, 5:] - paths[None][:, 5:]).abs().max() > 1e-4


def test_with_memory_0_only_the_last_position_counts(network):
    starts = torch.randn(2, 2, generator=torch.Generator().manual_seed(2))
    path = walk(network, network.schedule, starts, tokens=3, memory=0, steps=3, seed=5)
    asked = []
    inner = network.init_state

    def init_state(batch, cond=None):
        asked.append(cond["static"]["start"])
        return inner(batch, cond)

    network.init_state = init_state
    try:
        walk(network, network.schedule, starts, tokens=3, memory=0, steps=3, seed=5)
    finally:
        del network.init_state
    for number, start in enumerate(asked):
        torch.testing.assert_close(start, path[:, 4 * number], rtol=0, atol=0)


def test_a_walk_wants_a_causal_denoiser_and_sound_numbers(network):
    starts, schedule = torch.zeros(1, 2), linear(50)
    with pytest.raises(ValueError, match="causal"):
        walk(NonCausal(schedule, 4), schedule, starts, tokens=2)
    for bad in ({"every": 0}, {"memory": -1}):
        with pytest.raises(ValueError, match="memory >= 0"):
            walk(network, schedule, starts, tokens=2, **bad)


# --------------------------------------------------------------------------------------------------------- pictures

def test_panels_hold_the_rows_numbers():
    rows = [{"task": "t", "method": method, "variant": {"delay": delay, "starts": "all"}, "metric": "score",
             "value": float(delay), "low": delay - 1.0, "high": delay + 1.0}
            for method, delay in (("a", 0), ("a", 5), ("b", 5))]
    settings, panels = panels_of(rows, "delay", {"score": ("score", {"starts": "all"})})
    assert settings == [0, 5]
    assert panels == {"score": {"a": [(0.0, -1.0, 1.0), (5.0, 4.0, 6.0)], "b": [None, (5.0, 4.0, 6.0)]}}
    ax = line_panels(["0", "5"], panels, xlabel="delay").axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0, 5])
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [5])
    with pytest.raises(ValueError, match="2 estimates for 3"):
        line_panels(["0", "5", "9"], panels, xlabel="delay")


def test_paths_are_drawn_in_the_colour_of_their_kind():
    paths = np.stack([line((-1, -1), (1, 1)), line((-1, 1), (1, -1)), np.roll(line((-1, 1), (1, 1)), 0, 0)])
    colors = {"trained": "#000000", "composed": "#ff0000", "neither": "#00ff00"}
    ax = path_panels({"some": (paths, ["trained", "trained", "neither"])}, colors).axes[0]
    assert [len(lines.get_segments()) for lines in ax.collections[:3]] == [2, 0, 1]
    with pytest.raises(ValueError, match="one of the kinds"):
        path_panels({"some": (paths, ["trained", "odd", "neither"])}, colors)


# --------------------------------------------------------------------------------------------------------- ablation

@pytest.mark.slow
def test_the_ablation_changes_one_thing_at_a_time_and_shares_the_benchmarks_networks():
    import argparse

    import yaml

    from dforce.benchmarks.planning.suite import read_suite
    from dforce.cli.compose import composed as compose
    from dforce.config import build

    script = runpy.run_path(str(SCRIPTS / "ablation.py"))
    text = script["suite"](argparse.Namespace(steps=2000, seeds=3))
    found = read_suite(text)
    assert len(found.methods) == 21 and {len(method.trials) for method in found.methods.values()} == {4}
    assert found.tune_seed == TUNE_SEED

    composed = {name: compose("train", model.overrides) for name, model in found.models.items()}
    first = composed["forcing"]
    level = torch.tensor([[0, 10, 300, 999]])
    snr = linear(1000).log_snr(level)
    for name, cfg in composed.items():
        assert {key for key in first if cfg[key] != first[key]} == ({"objective"} if name != "forcing" else set())
        weight = build(cfg["objective"]["weight"])(snr)[0].tolist()
        rising = build(cfg["objective"]["levels"])(linear(1000), (64, 5), torch.Generator().manual_seed(0)).diff(dim=1)
        low, high = rising.min() >= 0, rising.max() <= 0  # levels never fall along time; never rise
        assert (bool(low), bool(high)) == {"full sequence": (True, True), "rising levels": (True, False)}.get(
            name, (False, False))
        assert (weight == [1.0] * 4) == (name == "no weight")
        if "fused" not in name and name != "no weight":
            np.testing.assert_allclose(weight, snr.exp().clamp(max=5.0)[0].tolist(), rtol=1e-6)
        elif name != "no weight":
            assert weight[0] == 5.0 and weight[2] > 1.3 * float(snr[0, 2].exp())  # a clean past lends its weight
    shipped = yaml.safe_load((ROOT / "configs/suites/maze2d-umaze-cpu.yaml").read_text(encoding="utf-8"))
    for name in ("forcing", "full sequence"):
        assert compose("train", {**shipped["train"], **shipped["models"][name]}) == composed[name]


@pytest.mark.slow
def test_one_future_guides_where_plain_guidance_does_and_more_of_them_elsewhere(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = runpy.run_path(str(SCRIPTS / "futures.py"))
    planner = small(DiffusionPlanner, lookahead=2)
    starts, goals = starts_of(UMAZE, 3, [0])
    found = dict(script["compared"](planner, starts, goals, 60, [1, 4]))
    assert len(found) == 2 * len(script["WAYS"]) * len(script["SHARES"])
    for (way, draws, _), metrics in found.items():
        assert all(value.shape == (3,) for value in metrics.values())
        if draws == 1:  # Monte Carlo Tree Guidance with one future is plain guidance, exactly
            for value in metrics.values():
                torch.testing.assert_close(value, torch.ones(3), rtol=1e-4, atol=1e-4)
        elif way.startswith("posterior"):
            assert (metrics["cosine"] < 0.9999).any()
    several = {way: torch.cat([metrics["cosine"] for (other, draws, _), metrics in found.items()
                               if (other, draws) == (way, 4)]) for way in script["WAYS"]}
    assert all((cosine < 0.9999).any() for cosine in several.values())            # every way is really drawn,
    assert not torch.equal(several["tree, mean"], several["posterior, mean"])     # and its options arrive
    assert not torch.equal(several["tree, mean"], several["tree, log-mean-exp"])


def test_the_overview_shows_differences_in_percent_of_the_controllers(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = runpy.run_path(str(SCRIPTS / "overview.py"))

    def row(task, method, metric, value):
        return {"task": task, "method": method, "variant": {"starts": "all"}, "metric": metric, "value": value,
                "low": value - 1, "high": value + 1, "n": 5, "seeds": 1, "unit": "", "higher_is_better": True}

    rows = [row("t", "controller", "return", 50.0),
            row("t, paired differences", "MCTG n=4 - Diffuser, tracking", "return_difference", 5.0),
            row("t, paired differences", "MCTG n=4 - Diffuser, diffused action", "return_difference", 7.0)]
    header = {"command": "x", "commit": "c", "versions": {}, "machine": {}, "seconds": 1.0, "peak_memory_mb": 1.0}
    file = write_results(tmp_path / "planning_t.json", header, rows)
    with pytest.raises(ValueError, match="controller and random"):
        script["differences"](script["read"](file), "tracking")
    file = write_results(tmp_path / "planning_t.json", header, [row("t", "random", "return", 10.0), *rows])
    run = script["read"](file)
    assert (run.task, script["differences"](run, "tracking")) == (
        "t", {"all starts": {"MCTG n=4 - Diffuser": (12.5, 10.0, 15.0)}})
    with pytest.raises(ValueError, match="under 'trackin'; there are tracking, diffused action"):
        script["differences"](run, "trackin")


def test_levels_for_walking_are_uniform_in_half_of_the_sequences_and_often_clean_in_the_others():
    schedule = linear(1000)
    found = levels(schedule, (800, 50), torch.Generator().manual_seed(0))
    uniform, spaced = found[:400], found[400:]
    assert set(spaced.unique().tolist()) == set(schedule.grid(40).tolist())
    assert abs((spaced == 0).double().mean() - 1 / 41) < 0.005
    assert abs(uniform.double().mean() - 500) < 15 and len(uniform.unique()) == 1001


def test_a_plan_begins_where_its_first_state_is(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    script = runpy.run_path(str(SCRIPTS / "beginnings.py"))

    class Aside:
        scale = 0.0

        def __call__(self, obs, goal, remaining, rng):
            states = np.repeat(obs[:, None], remaining, 1)
            states[:, 0, :2] += [0.3, 0.4]
            return Plan(np.zeros((len(obs), remaining, 2)), states)

    row = script["beginning"](UMAZE, "aside", Aside(), 3)
    assert row["value"] == pytest.approx(0.5) and (row["n"], row["method"]) == (3, "aside")


def test_methods_are_compared_network_by_network_and_episode_by_episode(tmp_path):
    study = Comparison("task", "data", tmp_path, {"ours": (), "theirs": ()}, 2, {
        "ours": {"none": 4, "delay": 2}, "theirs": {"none": 4}}, variant={"span": 5})
    (tmp_path / "episodes").mkdir()
    held = {"ours-0-none": "1111", "ours-1-none": "1101", "ours-0-delay": "01", "theirs-0-none": "1001",
            "theirs-1-none": "0001"}
    for name, bits in held.items():
        write_episodes(tmp_path / "episodes" / f"{name}.jsonl", records([
            RobotEpisode(seed, stage=3 * int(bit), reached=True, held=bit == "1") for seed, bit in enumerate(bits)]))
    rows = {(row["method"], row["metric"], row["variant"]["corruption"]): row for row in study.rows()}
    ours, paired = rows["ours", "held", "none"], rows["ours - theirs", "held_difference", "none"]
    assert (ours["value"], ours["n"], ours["seeds"], ours["variant"]["span"]) == (7 / 8, 8, 2, 5)
    assert (paired["value"], paired["n"], paired["seeds"]) == (4 / 8, 8, 2) and paired["low"] < 0.5 < paired["high"]
    assert rows["theirs", "stage_3", "none"]["value"] == 3 / 8 and rows["theirs", "reached", "none"]["value"] == 1
    drop = rows["ours", "held_difference", "delay - none"]  # two episodes of one network, the only ones played twice
    assert (drop["value"], drop["n"], drop["seeds"]) == (-0.5, 2, 1)
    trained, played = [job for job in study.jobs() if "ours-1" in job.name][:2]
    assert not trained.done() and played.done() and played.needs == (trained.name,)
    for number, parts in ((0, "10.5\n2.5\n"), (1, "15.0\n")):
        (tmp_path / f"ours-{number}").mkdir()
        (tmp_path / f"ours-{number}" / "cpu_seconds").write_text(parts)
    spent = next(row for row in study.rows() if row["metric"] == "training_time")
    assert (spent["method"], spent["value"], spent["seeds"]) == ("ours", 14, 2)
