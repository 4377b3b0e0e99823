"""Planners tuned on what their plans earn: the reward, its starts, the rivals, and the verb from end to end."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dforce.align import AlignObjective, GroupAdvantage, OnPolicy, Query, Sampler, policy_gradient
from dforce.align.algorithms.ddpo import GRPO
from dforce.cli.main import main
from dforce.core.noise import Noise
from dforce.core.schedule import linear
from dforce.data.normalize import Affine
from dforce.planning.control import run_episodes, tracking
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.returns import LowTemperature, PlanQuery, PlanReturn, StartSampler, best_driven, tempered
from dforce.planning.scores import blocked_mask
from dforce.planning.tasks import get_task
from dforce.planning.tuning import Guided, Monitoring, PlannerTuning, PlanSampling
from dforce.planning.tuning_run import tuning_jobs
from dforce.report.rows import read_results
from dforce.train.checkpoint import build_denoiser, load, save
from dforce.train.fit import fit
from dforce.train.state import TrainingState
from tests.align_bed import Gaussian
from tests.small_planner import LAYOUT, small

UMAZE = get_task("maze2d-umaze")._replace(steps=40)


def asked(starts, goals):
    return [PlanQuery(obs, goal) for obs, goal in zip(starts, goals, strict=True)]


# ----------------------------------------------------------------------------------------------- reward and rivals

def test_the_reward_is_the_return_of_the_episode_that_a_plan_gives() -> None:
    planner, (starts, goals) = small(DiffusionPlanner, scale=0.0), UMAZE.starts(6, 3)
    noise = Noise(5)
    plans = planner._part(starts, goals, 40, noise).float()  # physical ones, [6, 40, 6]
    tokens = planner.normalizer.normalize(plans).reshape(6, 20, 12)
    returns = PlanReturn(planner, UMAZE, tracking())

    def same(obs, goal, remaining, rng):
        return planner.decoded(tokens)

    played = run_episodes(UMAZE.world, same, tracking(), starts, goals, steps=40)
    assert torch.equal(returns(tokens, [""] * 6, asked(starts, goals)), torch.as_tensor(played.returns))
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    assert torch.equal(returns(tokens[order], [""] * 6, asked(starts[order], goals[order])),
                       torch.as_tensor(played.returns)[order])


def test_the_reward_refuses_what_it_cannot_drive() -> None:
    returns, (starts, goals) = PlanReturn(small(DiffusionPlanner), UMAZE, tracking()), UMAZE.starts(2, 0)
    with pytest.raises(ValueError, match="2 plans .* metadata gives 0"):
        returns(torch.zeros(2, 20, 12), ["", ""], [None, None])
    with pytest.raises(ValueError, match="not finite.*diverged"):
        returns(torch.full((2, 20, 12), torch.nan), ["", ""], asked(starts, goals))


@pytest.mark.slow
def test_blocked_starts_are_blocked_and_a_function_of_the_seed() -> None:
    starts, goals = StartSampler(UMAZE, blocked=True)(9, 7)
    assert starts.shape == (9, 4) and blocked_mask(UMAZE.world, starts, goals).all()
    again, _ = StartSampler(UMAZE, blocked=True)(9, 7)
    assert np.array_equal(starts, again) and not np.array_equal(starts, StartSampler(UMAZE, blocked=True)(9, 8)[0])
    with pytest.raises(ValueError, match="tune on all starts"):
        StartSampler(get_task("maze2d-open"), blocked=True)(1, 0)


def test_temperature_scales_all_noise_and_one_changes_nothing() -> None:
    like, token = torch.empty(2, 3, 4), torch.arange(3)
    plain = Noise(9)(1, token, like)
    assert torch.equal(tempered(Noise(9), 1.0)(1, token, like), plain)
    assert torch.equal(tempered(Noise(9), 0.25)(1, token, like), 0.25 * plain)
    starts, goals = UMAZE.starts(3, 1)
    plans = [planner(starts, goals, 40, np.random.default_rng(0)).states for planner in
             (small(DiffusionPlanner, eta=1.0, order=1, scale=0.0), small(LowTemperature, eta=1.0, order=1, scale=0.0,
                                                                          temperature=1.0))]
    assert np.array_equal(*plans)
    still = small(LowTemperature, eta=1.0, order=1, scale=0.0, temperature=0.0)
    assert np.array_equal(*(still(starts, goals, 40, np.random.default_rng(seed)).states for seed in (0, 1)))
    with pytest.raises(ValueError, match="temperature must be >= 0"):
        tempered(Noise(), -0.1)


def test_the_best_of_driven_plans_is_never_worse_than_the_first() -> None:
    planner, (starts, goals) = small(DiffusionPlanner, eta=1.0, order=1, scale=0.0), UMAZE.starts(12, 1)
    returns = PlanReturn(planner, UMAZE, tracking())
    first = run_episodes(UMAZE.world, planner, tracking(), starts, goals, steps=40, seed=4)
    best = {n: best_driven(planner, returns, n)(starts, goals, 4) for n in (1, 4)}
    assert np.array_equal(best[4].trajectory[:, 0], starts)
    assert best[1].rewards.shape == best[4].rewards.shape == (12, 40)
    assert (best[4].returns >= best[1].returns).all() and (best[4].returns > best[1].returns).any()
    assert first.rewards.shape == best[1].rewards.shape


# ------------------------------------------------------------------------------------------ learning where to go

@pytest.mark.slow
def test_policy_gradient_moves_the_plans_to_the_goal() -> None:
    """Plans that stay about one place, the mean of a Gaussian, from a start at the goal: the best place is there."""
    task, schedule = get_task("maze2d-open")._replace(steps=80), linear(1000)
    goal = np.asarray(task.maze.goal, dtype=float)
    start = np.array([*goal, 0.0, 0.0])
    away = torch.zeros(12)
    away[[2, 8]] = -0.9                        # the two x positions of a token: where the robot is
    model = Gaussian(schedule, 0.0, 0.5, dim=12)
    model.mean.data += away
    normalizer = Affine([0, 0, *goal, 0, 0], [1.0] * 6)
    planner = DiffusionPlanner(model, schedule, normalizer, LAYOUT, steps=4, delay=0, order=1, eta=1.0, scale=0.0,
                               horizon=2)  # one token: its last state stays the target
    returns = PlanReturn(planner, task, tracking(hold=False))
    tokens = planner.tokens(task.steps)
    sampler = Sampler(model, schedule, planner.matrix(tokens), (tokens, 12))

    def ask(count, generator):
        return Query(["here"] * count, None, [PlanQuery(start, goal)] * count)

    source = OnPolicy(sampler, returns, ask, samples=64, group=64, credit=GroupAdvantage(), updates=2)
    objective = AlignObjective(model, schedule, policy_gradient())
    before = source.draw(10**6).reward.mean()
    list(fit(objective, source, lr=0.05, steps=50, warmup=1, weight_decay=0.0, clip=None, ema=None, decay="constant",
             precision="fp32", device="cpu"))
    after = source.draw(10**6).reward.mean()
    assert after > before + 20, (before, after)              # of 80 steps
    assert float(model.mean[8].abs()) < 0.4                  # well within the radius that is paid


# ------------------------------------------------------------------------------------------------------- the verb

@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of an untrained planner of umaze, small."""
    torch.manual_seed(0)
    config = {"net": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 16},
              "schedule": {"_target_": "dforce.core.schedule.linear", "levels": 100}, "predict": "v"}
    layout = {"stack": 10, "horizon": 300, "action": [0, 2], "observation": [2, 6], "env": "maze2d-umaze",
              "event_shape": [60], "static": {"start": 4}}
    state = {f"denoiser.{name}": value for name, value in build_denoiser(config, layout).state_dict().items()}
    return save(tmp_path_factory.mktemp("base") / "umaze", TrainingState(0, state, {}, {}, {}, {}), config=config,
                layout=layout, normalizer=Affine([0, 0, 1, 1, 0, 0], [0.7, 0.7, 2.0, 2.0, 1.0, 1.0]))  # about the goal


SMALL = ["starts=all", "executor.hold=false", "guided.steps=4", "best_of=2", "pictures=1"]
BARE = [*SMALL[:2], "guided.scale=0.0", "temperature=1.0", "best_of=0", "pictures=1"]


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    assert main(["align", "planner", f"checkpoint={base}", "fast_dev_run=true", f"out={out}", "beside=[rwr]",
                 *SMALL]) == 0
    return out


@pytest.mark.slow
def test_the_run_has_numbers_pictures_and_a_checkpoint_that_plans(run: Path, base: Path) -> None:
    assert (run / "STATUS").read_text() == "done\n"
    rows = read_results(run / "results.json").rows
    found = {(row["method"], row["variant"].get("sampling")) for row in rows if row["metric"] == "return"}
    assert {("base", "policy"), ("base", "guided"), ("grpo", "policy"), ("grpo", "guided"), ("rwr", "policy"),
            ("low temperature", "policy"), ("best of 2, driven", "policy"), ("straight", None)} <= found
    paired = [row for row in rows if row["metric"] == "return_difference" and row["variant"]["starts"] == "all"]
    means = {row["method"]: row["value"] for row in rows if row["metric"] == "return"
             and row["variant"].get("sampling") == "policy" and row["variant"]["starts"] == "all"}
    for row in paired:
        if "guided" not in row["method"]:
            name, other = row["method"].split(" - ")
            assert row["value"] == pytest.approx(means[name] - means[other]), row["method"]
    assert {"grpo - base", "grpo guided - base guided", "grpo - base guided",
            "rwr - base"} <= {row["method"] for row in paired}
    assert {row["method"] for row in rows if row["metric"] == "kl"} == {"grpo", "rwr"}
    assert {"before_after.png", "curves.png"} <= {file.name for file in (run / "media").iterdir()}
    assert (run / "index.html").is_file() and (run / "episodes.jsonl").is_file()
    ours, before = load(run), load(base)
    assert ours.config["align"]["algorithm"] == "grpo" and ours.layout == before.layout
    changed = [not torch.equal(a, b) for a, b in zip(ours.denoiser.parameters(), before.denoiser.parameters(),
                                                     strict=True)]
    assert any(changed)


@pytest.mark.slow
def test_a_finished_run_is_left_alone_and_another_one_is_not_mixed_in(run: Path, base: Path, capsys) -> None:
    curve = (run / "tuned" / "grpo-0" / "curve.jsonl").read_text()
    lines = [json.loads(line) for line in curve.splitlines()]
    assert [line["queries"] for line in lines] == [0, 16, 32] and lines[0]["watched_kl"] == 0.0
    again = ["align", "planner", f"checkpoint={base}", "fast_dev_run=true", f"out={run}", "beside=[rwr]", *SMALL]
    assert main(again) == 0
    assert (run / "tuned" / "grpo-0" / "curve.jsonl").read_text() == curve
    assert main([*again, "algorithm.lr=0.5"]) == 2
    assert "other algorithm.lr" in capsys.readouterr().err


@pytest.mark.parametrize("override, told", [("checkpoint=null", "checkpoint is needed"),
                                            ("algorithm=ddpoo", "did you mean"),
                                            ("algorithm.beta=3", "algorithm.beta is a key of"),
                                            ("algorithm=draft", "has no gradient"),
                                            ("starts=some", "starts=all or blocked"), ("policy.eta=0.0", "policy.eta"),
                                            ("checkpoint=digits", "not on a maze")])
def test_mistakes_are_told_before_anything_is_done(base: Path, tmp_path: Path, capsys, override, told) -> None:
    assert main(["align", "planner", f"checkpoint={base}", f"out={tmp_path / 'out'}", override]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_reward_that_fails_in_mid_run_leaves_the_last_checkpoint_and_the_run_goes_on(
        base: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    drive, calls = PlanReturn.__call__, []

    def broken(self, plans, prompts, metadata):
        calls.append(len(plans))
        values = drive(self, plans, prompts, metadata)
        return values * float("nan") if len(calls) == 2 else values

    command = ["align", "planner", f"checkpoint={base}", f"out={tmp_path / 'out'}", "fast_dev_run=true", "save_every=1",
               *BARE]
    monkeypatch.setattr(PlanReturn, "__call__", broken)
    assert main(command) != 0
    error = capsys.readouterr().err
    assert "not finite" in error and "epoch 1" in error and "PlanReturn in maze2d-umaze" in error
    assert (tmp_path / "out" / "STATUS").read_text().startswith("failed")
    kept = load(tmp_path / "out" / "tuned" / "grpo-0")
    assert kept.step == 4                                        # the end of the first epoch
    assert main(command) == 0                                    # the reward is well again
    assert calls == [16, 16, 16]                                 # the second epoch alone is done again
    whole = tmp_path / "whole"
    assert main([*command[:3], f"out={whole}", *command[4:]]) == 0
    for a, b in zip(load(whole).denoiser.parameters(), load(tmp_path / "out").denoiser.parameters(), strict=True):
        assert torch.equal(a, b)


def test_jobs_of_two_seeds_and_what_they_wait_for(tmp_path: Path) -> None:
    tuning = PlannerTuning("maze2d-umaze", False, {"grpo": GRPO()}, PlanSampling(6, 0, 1.0, "index"), "all", tracking(),
                           [3, 4], 12, Guided(20, 1, 0.5, 1), 0.5, 8, Monitoring(5, 8), 1, 10, None, True)
    jobs = tuning_jobs(tuning, tmp_path)
    assert {job.name: job.needs for job in jobs} == {
        "play base 3": (), "tune grpo 3": (), "play grpo 3": ("tune grpo 3",),
        "play base 4": (), "tune grpo 4": (), "play grpo 4": ("tune grpo 4",)}
    assert len(pickle.loads(pickle.dumps(jobs))) == len(jobs)
