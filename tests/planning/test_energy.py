"""Energies by their formulas, written out; finite gradients at the goal; goals of many plans; physical units."""

from __future__ import annotations

import math

import pytest
import torch

from dforce.guidance.monte_carlo import GoalEnergy
from dforce.planning.energy import Physical, Reach, Reward, SumOfDistances, Terminal

PLAN = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0)).double()
GOAL = torch.tensor([0.3, -0.4]).double()
ALL = {"sum": SumOfDistances, "reach": Reach, "terminal": Terminal, "reward": Reward}


def distances(plan, goal):
    return [[math.dist(point[2:4].tolist(), goal.tolist()) for point in one] for one in plan]


def test_formulas():
    d = distances(PLAN, GOAL)
    sums = [-sum(row) for row in d]
    reach = [math.log(sum(math.exp(-v**2 / (2 * 0.4**2) - 0.1 * t) for t, v in enumerate(row))) for row in d]
    ends = [-(row[-1] ** 2) / (2 * 0.2**2) for row in d]
    rewards = [sum(1 / (1 + math.exp(-(0.5 - v) / 0.1)) for v in row) for row in d]
    for energy, wanted in ((SumOfDistances(GOAL), sums), (Reach(GOAL, std=0.4, hurry=0.1), reach),
                           (Terminal(GOAL), ends), (Reward(GOAL), rewards)):
        torch.testing.assert_close(energy(PLAN), torch.tensor(wanted).double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_larger_is_better(name):
    energy, there = ALL[name](GOAL), PLAN.clone()
    there[..., 2:4] = GOAL
    assert (energy(there) > energy(PLAN)).all()
    near, far = PLAN.clone(), PLAN.clone()
    near[..., 2:4], far[..., 2:4] = GOAL + 0.1, GOAL + 1.0
    assert (energy(near) > energy(far)).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("away", [0.0, 1e-4, 1.0, 1e3])
def test_gradients_are_finite_at_and_far_from_the_goal(name, away):
    plan = PLAN.float().clone()
    plan[..., 2:4] = GOAL.float() + away
    plan.requires_grad_()
    energy = ALL[name](GOAL.float())(plan)
    gradient, = torch.autograd.grad(energy.sum(), plan)
    assert torch.isfinite(gradient).all() and torch.isfinite(energy).all()
    assert not gradient[..., :2].any() and not gradient[..., 4:].any()   # only the position is judged
    if away == 0.0:
        assert gradient.abs().max() < 1e-3


@pytest.mark.parametrize("name", ALL)
def test_columns_say_where_the_position_is(name):
    moved = PLAN[..., [2, 3, 0, 1, 4, 5]]
    assert torch.equal(ALL[name](GOAL, columns=slice(0, 2))(moved), ALL[name](GOAL)(PLAN))


@pytest.mark.parametrize("name", ALL)
def test_goals_of_their_own_fold_over_draws(name):
    """[n B, H, D], the draw the slow dimension: plan j * B + b belongs to goal b."""
    goals = torch.randn(3, 2).double()
    draws = torch.cat([PLAN, PLAN + 0.1, PLAN - 0.2])
    wanted = torch.stack([ALL[name](goals[i % 3])(draws[i:i + 1])[0] for i in range(9)])
    torch.testing.assert_close(ALL[name](goals)(draws), wanted)
    torch.testing.assert_close(ALL[name](goals)(PLAN), wanted[:3])
    with pytest.raises(ValueError, match="3 plans for 2 goals"):
        ALL[name](goals[:2])(PLAN)


def test_terminal_is_a_goal_energy():
    energy = Terminal(GOAL, std=0.3)
    assert isinstance(energy, GoalEnergy) and energy.reduce == "gaussian"
    assert torch.equal(energy.features(PLAN), PLAN[:, -1, 2:4])
    normal = torch.distributions.Normal(GOAL, torch.tensor(0.3).double())
    constant = normal.log_prob(GOAL).sum()
    torch.testing.assert_close(energy(PLAN), normal.log_prob(PLAN[:, -1, 2:4]).sum(-1) - constant)
    assert not isinstance(SumOfDistances(GOAL), GoalEnergy)


def test_each_names_its_reduction():
    assert {name: kind(GOAL).reduce for name, kind in ALL.items()} == {
        "sum": "mean", "reach": "logmeanexp", "terminal": "gaussian", "reward": "mean"}


class Scale:
    """A normaliser: physical = 2 x + 1."""

    def denormalize(self, x):
        return 2 * x + 1


@pytest.mark.parametrize("name", ALL)
def test_physical_unstacks_and_denormalises(name):
    plan = torch.randn(3, 6, 6).double()
    tokens = ((plan - 1) / 2).reshape(3, 2, 18)               # three steps a token
    energy = Physical(ALL[name](GOAL), Scale(), 3)
    torch.testing.assert_close(energy.plan(tokens), plan)
    torch.testing.assert_close(energy(tokens), ALL[name](GOAL)(plan))
    assert energy.reduce == ALL[name](GOAL).reduce
    assert isinstance(energy, GoalEnergy) == (name == "terminal")


def test_physical_passes_features_on_and_defaults_to_nats():
    plan = torch.randn(3, 6, 6).double()
    energy = Physical(Terminal(GOAL, std=0.7), Scale(), 3)
    torch.testing.assert_close(energy.features(((plan - 1) / 2).reshape(3, 2, 18)), plan[:, -1, 2:4])
    assert energy.std == 0.7 and energy.goal is GOAL
    assert Physical(lambda plan: plan.sum((1, 2)), Scale(), 3).reduce == "logmeanexp"
