"""Best of n: one plan is the plain planner, bit for bit; of more, the one that the selector likes best is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dforce.planning.energy import Reward, SumOfDistances, Terminal
from dforce.planning.planner import BestOfN, DiffusionPlanner, name_of
from tests.small_planner import GOALS, STARTS, small, tokens_per_plan

SETTINGS = [{"scale": 0.0}, {"scale": 0.2}, {"scale": 0.2, "draws": 3}, {"scale": 0.2, "eta": 0.5}]


def plan(planner, starts=STARTS, goals=GOALS, seed=0):
    return planner(starts, goals, 12, np.random.default_rng(seed))


def judged(energy, plans):
    whole = np.concatenate([plans.actions, plans.states], 2)
    return energy(torch.tensor(GOALS).float())(torch.tensor(whole).float()).numpy()


@pytest.mark.parametrize("settings", SETTINGS)
def test_best_of_one_is_the_planner_itself(settings):
    one, plain = plan(small(BestOfN, n=1, **settings)), plan(small(DiffusionPlanner, **settings))
    assert np.array_equal(one.states, plain.states) and np.array_equal(one.actions, plain.actions)


@pytest.mark.parametrize("selector", [None, Terminal, Reward])
def test_the_kept_plan_is_the_best_of_those_that_the_planner_makes(selector):
    n, count = 4, len(STARTS)
    kept = plan(small(BestOfN, n=n, selector=selector))
    made = plan(small(DiffusionPlanner), np.tile(STARTS, (n, 1)), np.tile(GOALS, (n, 1)))
    parts = [type(made)(made.actions[i:i + count], made.states[i:i + count]) for i in range(0, n * count, count)]
    values = np.stack([judged(selector or SumOfDistances, part) for part in parts])
    best = values.argmax(0)
    assert len(set(best)) > 1                                                   # otherwise nothing was chosen
    for b in range(count):
        assert np.array_equal(kept.states[b], parts[best[b]].states[b])
        assert np.array_equal(kept.actions[b], parts[best[b]].actions[b])


def test_more_plans_never_choose_a_worse_one():
    values = np.stack([judged(SumOfDistances, plan(small(BestOfN, n=n))) for n in (1, 2, 5)])
    assert (np.diff(values, axis=0) >= -1e-4).all() and (values[2] > values[0] + 1e-2).any()


def test_it_costs_n_times_as_much():
    plain = tokens_per_plan(small(DiffusionPlanner), STARTS, GOALS, 12)
    assert plain > 0 and tokens_per_plan(small(BestOfN, n=5), STARTS, GOALS, 12) == 5 * plain


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"draws": 2, "delay": 3}, {"episodes": 2}])
@pytest.mark.slow
def test_the_shares_of_the_work_that_a_plan_tells_add_up_to_one(settings):
    for planner in (small(DiffusionPlanner, **settings), small(BestOfN, n=3, **settings)):
        shares = []
        telling = plan(replace(planner, progress=shares.append))
        assert sum(shares) == pytest.approx(1) and len(shares) > 3
        assert np.array_equal(telling.states, plan(planner).states)


def test_variant_and_names():
    from functools import partial

    assert small(BestOfN, n=3, draws=2).variant.items() >= {"n": 3, "draws": 2, "scale": 0.2}.items()
    assert small(BestOfN, n=3, selector=partial(Terminal, std=0.3)).variant["selector"] == "Terminal std=0.3"
    assert name_of(Reward) == "Reward"


def test_bad_settings():
    with pytest.raises(ValueError, match="n=0"):
        small(BestOfN, n=0)
    with pytest.raises(ValueError, match="horizon=0"):
        small(BestOfN, horizon=0)
    with pytest.raises(ValueError, match="one number each"):
        plan(small(BestOfN, n=2, selector=lambda goal: lambda plans: plans.sum(2)))
