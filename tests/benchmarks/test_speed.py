"""The benchmark: the references compute what the library computes, and the harness measures what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from dforce.benchmarks.speed import cost, data, harness, planning, sampling, train_step
from dforce.benchmarks.speed.benchmark import SpeedBenchmark
from dforce.benchmarks.speed.harness import Way, agree, race, relative_difference
from dforce.benchmarks.speed.official import OfficialObjective, TokenByToken, double_loop
from dforce.benchmarks.speed.sizes import QUICK, Sizes, maze_denoiser, random_batch
from dforce.cli.main import main
from dforce.nets.recurrent import RecurrentNet
from dforce.report.rows import ROW_KEYS, check_row, read_results

# --------------------------------------------------------------------------------------------------- the references


def test_token_by_token_equals_the_thin_network():
    torch.manual_seed(0)
    net = RecurrentNet((2, 3), static={"start": 2}, token={"hint": 4}, width=12, depth=2)
    cond = {"static": {"start": torch.randn(3, 2)}, "token": {"hint": torch.randn(3, 5, 4)}}
    x, label = torch.randn(3, 5, 2, 3), torch.randn(3, 5)
    official = TokenByToken(net)
    out, state = net(x, label, net.init_state(3, cond), cond)
    out_, state_ = official(x, label, official.init_state(3, cond), cond)
    torch.testing.assert_close(out_, out, rtol=0, atol=1e-6)
    torch.testing.assert_close(state_["z"], state["z"], rtol=0, atol=1e-6)
    assert [p is q for p, q in zip(official.parameters(), net.parameters(), strict=True)].count(False) == 0


def test_loss_and_gradients_are_equal():
    batch = random_batch(QUICK, 4)
    ours, theirs = (train_step.loss_and_gradient(train_step.objective(QUICK, 16, once_a_token=once), batch, "fp32")
                    for once in (False, True))
    assert ours[1].numel() == sum(p.numel() for p in maze_denoiser(QUICK, 16)[0].parameters())
    assert relative_difference(theirs, ours) < 1e-5


def test_stepper_trains():
    objective = train_step.objective(QUICK, 16, once_a_token=False)
    before = torch.cat([p.detach().flatten().clone() for p in objective.parameters()])
    step = train_step.fit_stepper(objective, random_batch(QUICK, 4), "fp32")
    logs = [step() for _ in range(3)]
    assert logs[-1].step == 3
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in objective.parameters()]))


def test_all_ways_of_sampling_agree():
    denoiser, schedule = maze_denoiser(QUICK, 16)
    sizes = QUICK._replace(tokens=9, steps=12)
    difference = agree(sampling.sampling_ways(sizes, denoiser, schedule, random_batch(sizes, 2)))
    assert all(value < 1e-5 for name, value in difference.items() if "bf16" not in name)
    assert 0 < difference["ours, wavefront, bf16"] < 5e-2  # it did run in another precision


def test_double_loop_evaluates_every_cell(monkeypatch):
    cells, step = [], TokenByToken.step
    monkeypatch.setattr(TokenByToken, "step", lambda self, x, *rest: cells.append(len(x)) or step(self, x, *rest))
    denoiser, schedule = maze_denoiser(QUICK, 8)
    batch = random_batch(QUICK, 3)
    matrix = sampling.pyramid(schedule.grid(4), QUICK.tokens, 1)
    double_loop(TokenByToken(denoiser.net), schedule, matrix, batch.x, batch.cond)
    assert cells == [3] * (len(matrix) - 1) * QUICK.tokens


@pytest.mark.slow
def test_second_order_takes_a_fifth_of_the_calls():
    rows = {(row["method"], row["variant"]["path"], row["metric"]): row["value"] for row in sampling._calls(QUICK).rows}
    assert rows["100 steps, order 1", "rows", "calls"] == 100 * QUICK.tokens
    assert rows["20 steps, order 2", "rows", "fewer calls"] == 5
    assert rows["20 steps, order 2", "wavefront", "tokens evaluated"] == 21 * QUICK.tokens  # one more shows it clean


def test_batched_draws_and_windows_agree():
    denoiser, schedule = maze_denoiser(QUICK, 16)
    assert agree(planning.guidance_ways(QUICK, denoiser, schedule, 2))["draws batched"] < 1e-5
    windows, dataset = data.sources(QUICK)
    assert len(windows) == len(dataset)
    index = torch.tensor([0, 5, len(dataset) - 1])
    batch = windows.gather(index)
    for i, number in enumerate(index.tolist()):
        x, start = dataset[number]
        assert torch.equal(batch.x[i], x) and torch.equal(batch.cond["static"]["start"][i], start)


# ------------------------------------------------------------------------------------------------------ the harness


def test_results_are_compared_before_anything_is_timed(monkeypatch):
    monkeypatch.setattr(harness, "clock", lambda run: pytest.fail("the clock ran"))
    ways = [Way("right", lambda: torch.ones(4)), Way("wrong", lambda: torch.ones(4) * 1.01)]
    with pytest.raises(AssertionError, match="'wrong' computes something else than 'right'"):
        race(ways)
    with pytest.raises(AssertionError, match="nan"):
        race([ways[0], Way("not a number", lambda: torch.full((4,), torch.nan))])


def test_relative_difference():
    wanted = [torch.tensor([3.0, 4.0]), torch.tensor([10.0])]
    assert relative_difference([torch.tensor([3.0, 4.5]), torch.tensor([10.0])], wanted) == pytest.approx(0.1)
    assert relative_difference(wanted, wanted) == 0


def test_race_takes_turns_and_ratios_within_rounds(monkeypatch):
    order, drift = [], iter([1.0, 1.0, 5.0, 5.0, 0.5, 0.5, 2.0, 2.0])  # the machine's speed, round by round
    cost_of = {"slow": 3.0, "fast": 2.0}
    ways = [Way(name, lambda name=name: order.append(name), result=lambda: torch.ones(1)) for name in cost_of]

    def clock(run, timer):
        run()
        return cost_of[order[-1]] * next(drift)

    monkeypatch.setattr(harness, "clock", clock)
    raced = race(ways, rounds=4)
    assert order == ["slow", "fast"] + ["slow", "fast", "fast", "slow"] * 2  # one call each to warm up
    np.testing.assert_allclose(raced.speedup("fast", "slow"), 1.5)
    rows = {(row["method"], row["metric"]): row for row in raced.measured("task", {"width": 1}).rows}
    assert rows["slow", "time"]["value"] == pytest.approx(3 * 1.5)
    assert [rows["fast", "speed-up"][key] for key in ("value", "low", "high")] == pytest.approx([1.5] * 3)
    assert rows["fast", "difference"]["value"] == 0 and ("slow", "speed-up") not in rows
    assert len(raced.measured("task", {}).runs) == 8


def test_a_slow_race_still_has_three_rounds():
    way = Way("only", lambda: None, result=lambda: [])
    assert len(race([way], rounds=9, seconds=0.0).seconds["only"]) == harness.FEWEST
    assert len(race([way], rounds=5).seconds["only"]) == 5
    with pytest.raises(ValueError, match="names of their own"):
        race([way, way])
    with pytest.raises(ValueError, match="at least one round"):
        race([way], rounds=0)


def test_clock_measures_one_call():
    now = iter([10.0, 12.5])
    calls = []
    assert harness.clock(lambda: calls.append(1), lambda: next(now)) == 2.5 and calls == [1]


# -------------------------------------------------------------------------------------------------------- the costs


def test_flops_of_products_and_recurrences():
    a, b = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)
    assert cost.flops(lambda: a @ b) == 2 * 3 * 4 * 5
    assert cost.flops(lambda: (a @ b).sum().backward()) == 2 * (2 * 3 * 4 * 5)  # forward, and the gradient of b
    gru = nn.GRU(6, 7, num_layers=2, batch_first=True)
    x = torch.randn(2, 5, 6)
    by_formula = 2 * (2 * 5) * (3 * 7 * (6 + 7) + 3 * 7 * (7 + 7))
    with torch.no_grad():
        assert cost.flops(lambda: gru(x)) == by_formula
    shapes = [tuple(weight.shape) for weight in gru.parameters()]
    assert cost._rnn_flops((2, 5, 6), shapes) == by_formula  # what stands in for it where cuDNN runs it


def test_launches_counts_kernels_and_not_views():
    a = torch.randn(4, 4, requires_grad=True)
    assert cost.launches(lambda: (a @ a.t()).relu()[:2].view(-1)) == 2
    assert cost.launches(lambda: torch.nn.functional.linear(a, a).exp().detach()) == 2
    forward = cost.launches(lambda: (a * a).sum())
    assert forward == 2 and cost.launches(lambda: (a * a).sum().backward()) > forward


def test_peak_memory_is_that_of_live_tensors():
    megabyte = torch.ones(2**18)

    def three_but_two_at_a_time():
        b = megabyte + 1
        c = b + 1
        del b
        return (c + 1).sum().mul_(2)

    assert cost.peak_memory(three_but_two_at_a_time) == pytest.approx(2, abs=1e-4)
    assert cost.peak_memory(lambda: megabyte.mul_(1).view(2, -1)) == 0


def test_gemm_peak_is_positive_and_remembered():
    first = cost.gemm_peak(torch.float32, torch.device("cpu"), sides=(64,), seconds=0.01)
    assert first > 0 and cost.gemm_peak(torch.float32, torch.device("cpu"), sides=(64,), seconds=0.01) == first


# ------------------------------------------------------------------------------------------------------ the command


@pytest.mark.slow
def test_the_command_writes_rows_and_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_step, "gemm_peak", lambda *_, **__: 1e12)  # half a second for each side and dtype
    assert main(["benchmark", "speed", "quick=true", "rounds=2", "device=cpu", f"out={tmp_path / 'run'}"]) == 0
    rows = read_results(tmp_path / "run" / "results.json").rows
    tasks = {train_step.TASK, sampling.TASK, sampling.CALLS, planning.ROW, planning.TASK, data.TASK}
    assert {row["task"] for row in rows} == tasks
    assert all(list(check_row(row)) == [*ROW_KEYS] for row in rows)
    runs = [json.loads(line) for line in (tmp_path / "run" / "episodes.jsonl").read_text().splitlines()]
    assert {run["task"] for run in runs} == {row["task"] for row in rows} - {sampling.CALLS}
    assert "training step\nmethod" in capsys.readouterr().out


def test_the_benchmark_names_the_parts_there_are():
    with pytest.raises(ValueError, match="did you mean 'sampling'"):
        SpeedBenchmark(("sampler",))


@pytest.mark.slow
def test_the_official_layers_are_as_large_as_published_and_start_six_times_as_many_kernels():
    sizes = Sizes()
    schedule = maze_denoiser(sizes, 8)[1]
    official = OfficialObjective(schedule, sizes.numbers)
    assert sum(p.numel() for p in official.parameters()) == pytest.approx(3.21e6, rel=0.005)  # of the released planner
    batch = random_batch(sizes, 2)
    loss, _ = official(batch)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in official.parameters())
    theirs = train_step.fit_stepper(OfficialObjective(schedule, sizes.numbers, latent=8, hidden=8), batch, "fp32")
    ours = train_step.fit_stepper(train_step.objective(sizes, 8, once_a_token=False), batch, "fp32")
    theirs(), ours()
    assert cost.launches(theirs) > 6 * cost.launches(ours)
