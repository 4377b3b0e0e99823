"""Best of n: one plan is the plain planner, bit for bit; of more, the one that the selector likes best is kept; sound
plans are above others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dforce.planning.energy import Reward, SumOfDistances, Terminal
from dforce.planning.planner import DiffusionPlanner, name_of
from dforce.planning.search.best_of_n import BestOfN, SoundArrival
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


def path(*corners, apart=0.03):
    """A plan [1, H, 6] along corners at a constant speed, the first row where it starts."""
    places = [np.array(corners[0], float)]
    for corner in np.array(corners[1:], float):
        way = corner - places[-1]
        count = round(np.linalg.norm(way) / apart)
        places += [*(places[-1] + way * np.arange(1, count + 1)[:, None] / count)]
    return torch.tensor(np.pad(places, ((0, 0), (2, 2))))[None]


def test_sound_plans_are_above_leaping_ones_and_those_above_plans_that_do_not_arrive():
    value = SoundArrival(torch.tensor([1.0, 1.0]))
    sound, late = path((0, 0), (0, 1), (1, 1)), path((0, 0), (0, 1), (0, 0), (0, 1), (1, 1))
    short, far = path((0, 0), (0, 1)), path((0, 0), (0, 0.5))
    small, large = sound.clone(), sound.clone()
    small[:, 5:, 2] += 0.2                             # over 5 times a step of .03
    large[:, 5:, 2] += 0.4
    count = late.shape[1]
    plans = [torch.cat([plan, plan[:, -1:].expand(1, count - plan.shape[1], 6)], 1)
             for plan in (sound, late, small, large, short, far)]
    values = torch.cat([value(plan) for plan in plans])
    assert (values.diff() < 0).all()                   # in the order in which they stand
    assert values[1] > value.sound >= values[2] and values[3] > 0 >= values[4]
    after = plans[0].clone()
    after[:, -1, 2] += 3.0                             # what comes after the arrival counts for nothing
    assert value(after) == values[0]
    turned = torch.cat(plans)[..., [1, 0, 3, 2, 5, 4]] * 7  # another frame and unit of length: the same order
    again = SoundArrival(torch.tensor([7.0, 7.0]), radius=2.8)(turned)
    assert again.argsort().equal(values.argsort())


class Sound(SumOfDistances):
    """The energy, with sums of distances of which some of the small planner's first two plans are sound."""

    sound = -18.0


def test_rounds_go_on_where_no_plan_is_sound_and_only_there():
    made = [plan(small(BestOfN, n=2, selector=Sound, rounds=rounds)) for rounds in (1, 2, 6)]
    values = np.stack([judged(Sound, one) - np.linalg.norm(STARTS[:, :2] - GOALS, axis=1) for one in made])
    good = values[0] > Sound.sound
    assert 0 < good.sum() < len(good)                  # otherwise the test shows nothing
    assert np.array_equal(made[1].states[good], made[0].states[good])
    assert (np.diff(values, axis=0) >= -1e-4).all() and (values[2] > values[0] + 1e-2).any()

    class Never(SumOfDistances):                       # all starts are redrawn: each gets what it gets among few
        sound = np.inf

    never = plan(small(BestOfN, n=2, selector=Never, rounds=2))
    np.testing.assert_allclose(never.states[~good], made[1].states[~good], atol=1e-5)


def test_variant_and_names():
    from functools import partial

    assert small(BestOfN, n=3, draws=2).variant.items() >= {"n": 3, "draws": 2, "scale": 0.2}.items()
    assert small(BestOfN, n=3, selector=partial(Terminal, std=0.3)).variant["selector"] == "Terminal std=0.3"
    assert name_of(Reward) == "Reward"


def test_bad_settings():
    with pytest.raises(ValueError, match="n=0"):
        small(BestOfN, n=0)
    with pytest.raises(ValueError, match="rounds=0"):
        small(BestOfN, rounds=0)
    with pytest.raises(ValueError, match="leap > 1"):
        SoundArrival(torch.zeros(2), leap=1.0)
    with pytest.raises(ValueError, match="horizon=0"):
        small(BestOfN, horizon=0)
    with pytest.raises(ValueError, match="one number each"):
        plan(small(BestOfN, n=2, selector=lambda goal: lambda plans: plans.sum(2)))
