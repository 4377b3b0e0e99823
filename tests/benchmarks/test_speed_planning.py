"""The planning benchmark: plans that are timed agree with slower ways of making them, and are guided."""

from __future__ import annotations

import pytest
import torch

from dforce.benchmarks.speed import planning
from dforce.benchmarks.speed.harness import agree, relative_difference
from dforce.benchmarks.speed.sizes import QUICK


@pytest.mark.parametrize("batch, delay, guided", [(1, 1, False), (1, 1, True), (1, 5, True), (3, 1, True)])
@pytest.mark.quick(1)
def test_plans_agree(batch, delay, guided):
    sizes = QUICK._replace(tokens=11, steps=8)
    ways = planning.planning_ways(sizes, batch, delay, guided)
    assert len(ways) == (2 if batch == 1 else 1) and all(value < 1e-4 for value in agree(ways).values())
    if guided:
        free = planning.planning_ways(sizes, batch, delay, False)[0].run()
        assert relative_difference([ways[0].run()], [free]) > 1e-3  # it does guide
    assert ways[0].run().shape == (batch, 11, QUICK.numbers)


def test_the_energy_is_a_sum_of_distances():
    plan = torch.zeros(2, 3, 12)
    plan[:, :, [2, 8]] = 4.0  # x of both steps of a token: (4, 0), sqrt(10) from (1, 1)
    assert planning.Distances(2)(plan).tolist() == pytest.approx([-6 * 10**0.5] * 2)


def test_every_race_is_another_one():
    races = [race.args[1:] for race in planning.planning_races(QUICK._replace(steps=20))]
    assert races == [(1, 1, False), (1, 1, True), (1, 5, True), (2, 1, False), (2, 1, True)]
    throughput = [row for row in planning.planning_races(QUICK)[-1]().rows if row["metric"] == "throughput"]
    assert [row["unit"] for row in throughput] == ["plans/s"] and throughput[0]["value"] > 0
