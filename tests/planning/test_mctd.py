"""Monte Carlo Tree Diffusion: a chain is semi-autoregressive sampling, searches improve, noise goes by path."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch

from dforce.config import build, check
from dforce.core.matrix import full_sequence, pyramid
from dforce.core.noise import Noise, seed_of
from dforce.core.sample import generate
from dforce.guidance.energy import guided
from dforce.planning.energy import Physical, SumOfDistances
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.search.mctd import Arrival, TreeDiffusionPlanner
from tests.small_planner import GOALS, STARTS, small, tokens_per_plan

STEPS = 12  # environment steps of a plan: six tokens


class Later:
    """A value that likes whatever is simulated last, which is the whole chain."""

    def __init__(self):
        self.calls = 0

    def __call__(self, goal):
        self.calls += 1
        return lambda plan: torch.full((len(plan),), float(self.calls))


def chain(**settings):
    """One child a node: no search."""
    return small(TreeDiffusionPlanner, **{"scales": (1.0,), "iterations": 9, "value": Later(), **settings})


def tree(**settings):
    return small(TreeDiffusionPlanner, **{"scales": (1.0, 0.0, 2.0), "value": SumOfDistances, **settings})


def plan(planner, seed=0):
    return torch.from_numpy(planner(STARTS, GOALS, STEPS, np.random.default_rng(seed)).states)


def search(planner, rows=slice(None), seed=0, episode=None):
    return planner.search(STARTS[rows], GOALS[rows], STEPS, Noise(seed), episode=episode)


# ------------------------------------------------------------------------------------------------ a chain is sampling

@pytest.mark.parametrize("settings", [{}, {"scale": 0.0}, {"draws": 3}, {"eta": 0.5}, {"draws": 3, "eta": 0.5},
                                      {"causal": False}, {"causal": False, "draws": 2},
                                      {"causal": False, "pad_to": 20}])
def test_one_sub_plan_is_the_planner_itself(settings):
    torch.testing.assert_close(plan(chain(sub_plans=1, **settings)), plan(small(DiffusionPlanner, **settings)),
                               rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.2])
def test_sub_plans_of_one_token_are_next_token_prediction(scale):
    wanted = plan(small(DiffusionPlanner, scale=scale, delay=4))
    torch.testing.assert_close(plan(chain(sub_plans=6, scale=scale)), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("delay", [0, 1])
def test_a_chain_is_semi_autoregressive_sampling(causal, delay):
    """Written as one schedule matrix over the whole plan: the second half is noise until the first is clean."""
    planner, half = chain(sub_plans=2, causal=causal, delay=delay), 3
    part = pyramid(planner.schedule.grid(4, "log_snr"), half, delay)
    waiting, done = torch.full_like(part, planner.schedule.levels), torch.zeros_like(part)
    matrix = torch.cat([torch.cat([part, waiting], 1), torch.cat([done, part], 1)])
    noise = Noise(seed_of(int(np.random.default_rng(0).integers(2**62)), 0))
    x, cond, goal = planner.start(STARTS, GOALS, STEPS, noise)
    energy = Physical(SumOfDistances(goal), planner.normalizer, planner.layout["stack"])
    x0 = generate(guided(planner.denoiser, planner.schedule, energy, 0.2), planner.schedule, matrix, x, cond=cond,
                  path="double_loop")
    torch.testing.assert_close(plan(planner), torch.from_numpy(planner._physical(x0))[..., 2:].double(), rtol=1e-5,
                               atol=1e-5)


@pytest.mark.slow
def test_factors_scale_the_guidance():
    for factor in (0.0, 0.5, 2.0):
        for draws in (1, 3):
            torch.testing.assert_close(plan(chain(sub_plans=1, scales=(factor,), draws=draws)),
                                       plan(small(DiffusionPlanner, scale=0.2 * factor, draws=draws)),
                                       rtol=1e-5, atol=1e-5)


def test_a_simulation_is_jumpy():
    """After one expansion the rest of a chain is denoised in jumpy_steps, given the finished first half."""
    planner = chain(sub_plans=2, iterations=1, scale=0.0, jumpy_steps=2, jumpy_delay=0)
    grid = planner.schedule.grid
    first, rest = pyramid(grid(4, "log_snr"), 3, 1), full_sequence(grid(2, "log_snr"), 3)
    matrix = torch.cat([torch.cat([first, torch.full_like(first, planner.schedule.levels)], 1),
                        torch.cat([torch.zeros_like(rest), rest], 1)])
    x, cond, _ = planner.start(STARTS, GOALS, STEPS, Noise(0))
    wanted = generate(planner.denoiser, planner.schedule, matrix, x, cond=cond, path="double_loop")
    torch.testing.assert_close(search(planner).plans, wanted, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- the search

@pytest.mark.slow
def test_more_iterations_never_find_less():
    values = torch.stack([search(tree(iterations=n)).values for n in (1, 2, 5)])
    assert (values.diff(dim=0) >= 0).all() and (values[-1] > values[0]).any()
    assert (search(tree(iterations=2)).expanded == 2).all()


@pytest.mark.parametrize("settings", [{}, {"draws": 2}, {"eta": 0.5}, {"causal": False}])
@pytest.mark.quick(2)
def test_permuting_episodes_permutes_plans(settings):
    planner, order = tree(iterations=3, **settings), np.array([3, 0, 4, 2, 1])
    there, here = search(planner), search(planner, order, episode=order)
    torch.testing.assert_close(here.plans, there.plans[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(here.values, there.values[order], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_episode_does_not_depend_on_its_neighbours():
    """They are at other depths of other trees, in the same batches."""
    planner = tree(iterations=3)
    alone = [search(planner, [row], episode=np.array([row])) for row in range(len(STARTS))]
    torch.testing.assert_close(torch.cat([each.plans for each in alone]), search(planner).plans, rtol=1e-5, atol=1e-5)


def test_the_value_is_that_of_the_plan_returned():
    found = search(tree(iterations=4))
    physical = torch.from_numpy(tree()._physical(found.plans))
    torch.testing.assert_close(found.values, SumOfDistances(torch.tensor(GOALS).float())(physical).double(), rtol=1e-5,
                               atol=1e-5)


def test_children_of_one_scale_differ_in_noise():
    value = {"value": SumOfDistances, "iterations": 1}
    one, many = search(chain(**value)), search(chain(children=4, **value))
    assert (many.values >= one.values - 1e-4).all()                 # the first of the four is the one
    assert (many.values > one.values + 1e-2).any()


def test_a_tree_that_is_all_known_ends_early():
    assert (search(chain(sub_plans=3, value=SumOfDistances)).expanded == 3).all()
    assert (search(tree(sub_plans=2, scale=0.0, iterations=50)).expanded == 1 + 3).all()


@pytest.mark.slow
def test_stop_ends_a_search_at_the_first_arrival():
    anywhere = partial(Arrival, radius=1e3, leap=None)              # every first step arrives
    settings = {"sub_plans": 3, "iterations": 4, "scales": (1.0, 0.0)}
    assert (search(small(TreeDiffusionPlanner, value=anywhere, stop=True, **settings)).expanded == 1).all()
    nowhere = partial(Arrival, radius=1e-6)
    assert (search(small(TreeDiffusionPlanner, value=nowhere, stop=True, **settings)).expanded == 4).all()
    first = search(small(TreeDiffusionPlanner, value=anywhere, stop=False, **settings))
    assert (first.expanded == 1).all() and (first.values == 1).all()  # its children have arrived: they are leaves


def test_tokens_of_an_unguided_chain():
    """A wavefront shows each token once a step and once more when it is finished; the last simulation is the plan."""
    tokens = tokens_per_plan(chain(sub_plans=1, scale=0.0), STARTS, GOALS, STEPS)
    assert tokens == 6 * (4 + 1)
    halves = tokens_per_plan(chain(sub_plans=2, scale=0.0, jumpy_steps=2), STARTS, GOALS, STEPS)
    assert halves == 6 * (4 + 1) + 3 * (2 + 1)


# -------------------------------------------------------------------------------------------------------- the value

def walk(*places):
    """A plan [1, H, 6] along the x axis."""
    plan = torch.zeros(1, len(places), 6)
    plan[0, :, 2] = torch.tensor(places)
    return plan


def test_arrival_by_hand():
    value = Arrival(torch.tensor([[1.0, 0.0]]), radius=0.25, leap=0.6)
    cases = {(0.0, 0.5, 1.0, 1.0): 2 / 4, (0.8, 0.3, 0.0, 0.0): 4 / 4, (0.0, 0.3, 0.5, 0.7): -0.3 / 1.3,
             (0.0, 0.7, 1.0, 1.0): -1 - 0.7 / 1.7, (0.0, 0.9, 5.0, 1.0): -1 - 0.9 / 1.9, (0.5, 0.8, 0.0, 0.0): 3 / 4}
    for places, wanted in cases.items():
        assert float(value(walk(*places))) == pytest.approx(wanted, abs=1e-6)
    assert value.arrival(walk(0.0, 0.5, 1.0, 1.0)).tolist() == [2]
    assert value.arrival(walk(0.0, 0.7, 1.0, 1.0)).tolist() == [4] and value.arrival(walk(0, 0, 0)).tolist() == [3]
    patient = Arrival(torch.tensor([[1.0, 0.0]]), radius=0.25, leap=None)
    assert float(patient(walk(0.0, 0.7, 1.0, 1.0))) == 2 / 4


def test_earlier_and_closer_is_worth_more():
    value = Arrival(torch.zeros(2), radius=0.1, leap=None)
    order = [walk(0, 9, 9), walk(9, 0, 0), walk(9, 9, 0), walk(9, 9, 0.2), walk(9, 0.3, 9), walk(9, 9, 9)]
    values = [float(value(each)) for each in order]
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
    assert min(values) > -1 and values[2] > 0 > values[3]


def test_where_all_plans_leap_the_least_leap_is_chosen():
    """The one nearest to what can be followed, not the first."""
    plans = torch.cat([walk(0, 0.5, 1), walk(0, 0.4, 0.8), walk(0, 1, 1)])
    values = Arrival(torch.tensor([[1.0, 0.0]]), leap=0.3)(plans)
    assert values.argsort(descending=True).tolist() == [1, 0, 2] and (values < -1).all()


def test_goals_of_their_own_fold_over_plans():
    goals, plans = torch.randn(3, 2), torch.randn(6, 5, 6)
    wanted = torch.cat([Arrival(goals[i % 3], leap=None)(plans[i:i + 1]) for i in range(6)])
    torch.testing.assert_close(Arrival(goals, leap=None)(plans), wanted)


# --------------------------------------------------------------------------------------------------- configuration

def test_it_is_built_from_a_node_and_names_itself():
    node = {"_target_": "dforce.planning.search.mctd.TreeDiffusionPlanner", "_partial_": True, "scales": [1, 0.5],
            "iterations": 3, "value": {"_target_": "dforce.planning.search.mctd.Arrival", "_partial_": True,
                                       "radius": 0.5}}
    check(node)
    variant = small(build(node)).variant
    assert variant.items() >= {"iterations": 3, "scales": "1 0.5", "value": "Arrival radius=0.5", "steps": 4}.items()
    assert all(isinstance(each, (int, float, str)) for each in variant.values())
    with pytest.raises(ValueError, match="did you mean 'sub_plans'"):
        check({**node, "subplans": 3})


@pytest.mark.parametrize("settings, message", [
    ({"sub_plans": 0}, "sub_plans=0"), ({"children": 0}, "children=0"), ({"iterations": 0}, "iterations=0"),
    ({"jumpy_steps": 0}, "jumpy_steps=0"), ({"jumpy_delay": -1}, "jumpy_delay=-1"), ({"scales": ()}, "one at least"),
    ({"scales": (1.0, -0.5)}, "factors of `scale` >= 0"), ({"exploration": -1.0}, "exploration=-1"),
    ({"backup": "median"}, "'median'"), ({"horizon": 0}, "horizon=0"),
])
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        small(TreeDiffusionPlanner, **settings)


@pytest.mark.slow
def test_bad_values():
    with pytest.raises(ValueError, match="SumOfDistances cannot"):
        search(tree(stop=True))
    with pytest.raises(ValueError, match="positive, got 0"):
        Arrival(torch.zeros(2), radius=0)
    with pytest.raises(ValueError, match="positive, got 0.4 and -1"):
        Arrival(torch.zeros(2), radius=0.4, leap=-1)
    assert math.isfinite(float(search(tree()).values.sum()))
