"""Regression from demonstrations: a known system's action is found again, hindsight stays within its chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.envs import World, get_maze
from dforce.envs.maze.batched import Balls
from dforce.planning.baselines.cloning import Cloned, behaviour_cloning, hindsight, inverse_dynamics
from dforce.planning.baselines.drivers import random_driver, run_driver
from dforce.planning.control import Plan, run_episodes, tracking

SMALL = {"width": 64, "depth": 2, "lr": 5e-3}
DT = 0.1


def linear(state, action):
    """A double integrator with drag: v' = .95 v + .5 a, x' = x + .1 v'."""
    v = 0.95 * state[..., 2:] + 0.5 * action
    return np.concatenate([state[..., :2] + DT * v, v], -1)


def chains(count=40, steps=100, seed=0, law=None):
    """Demonstrations of the linear system under law(state, rng) -> action; uniform actions unless given."""
    rng = np.random.default_rng(seed)
    law = law or (lambda state, rng: rng.uniform(-1, 1, (count, 2)))
    states, actions = [rng.normal(size=(count, 4))], []
    for _ in range(steps):
        actions.append(law(states[-1], rng))
        states.append(linear(states[-1], actions[-1]))
    return np.stack(states, 1), np.stack(actions, 1)


class Free(Balls):
    """Copies of the linear system without walls, as `play` wants them."""

    def __init__(self, n):
        self.state, self.goal = np.zeros((n, 4)), np.zeros((n, 2))

    def step(self, action):
        self.state = linear(self.state, np.clip(action, -1, 1))
        away = np.linalg.norm(self.state[:, :2] - self.goal, axis=1)
        return self.state.copy(), (away <= 0.5).astype(float)


OPEN = World(get_maze("open"), Free)


def test_hindsight_goals_come_later_in_the_same_chain():
    seen = [hindsight((5, 21), 4000, reach=8, seed=0, step=step) for step in range(5)]
    chain, t, later = (np.concatenate(part) for part in zip(*seen, strict=True))
    gap = later - t
    assert gap.min() == 1 and gap.max() == 8 and later.max() == 20 and t.min() == 0 and t.max() == 19
    assert set(chain) == set(range(5))
    away_from_the_end = gap[t <= 12]
    counts = np.bincount(away_from_the_end, minlength=9)[1:]
    assert np.abs(counts / counts.mean() - 1).max() < 0.1       # uniform where the chain goes on for long enough
    again = hindsight((5, 21), 4000, reach=8, seed=0, step=3)
    assert all(np.array_equal(a, b) for a, b in zip(again, seen[3], strict=True))


@pytest.fixture(scope="module")
def executor():
    return inverse_dynamics(*chains(), lookahead=1, steps=1000, hold=False, **SMALL)


def test_inverse_dynamics_recovers_a_linear_systems_action(executor):
    rng = np.random.default_rng(1)
    state, action = rng.normal(size=(500, 4)), rng.uniform(-1, 1, (500, 2))
    found = executor(Plan(np.zeros((500, 1, 2)), linear(state, action)[:, None]), 0, state, np.zeros((500, 2)))
    assert np.abs(found - action).mean() < 0.03


def test_inverse_dynamics_executes_a_plan_of_states(executor):
    """A feasible plan, its actions withheld: the executor follows it to where it leads."""
    rng = np.random.default_rng(2)
    start = np.concatenate([rng.uniform(1.5, 2.5, (6, 2)), np.zeros((6, 2))], 1)
    state, planned = start, []
    for _ in range(12):
        state = linear(state, rng.uniform(-0.5, 0.5, (6, 2)))
        planned.append(state)
    plan = Plan(np.zeros((6, 12, 2)), np.stack(planned, 1))
    played = run_episodes(OPEN, lambda *_: plan, executor, start, np.full((6, 2), 2.0), steps=12)
    assert np.abs(played.trajectory[:, 1:] - plan.states).max() < 0.05


@pytest.mark.slow
def test_lookahead_looks_that_far_ahead():
    """With 3 steps to go for the same displacement, a third of the force will do, and the target is 3 states on."""
    made = inverse_dynamics(*chains(), lookahead=3, steps=300, hold=False, **SMALL)
    state = np.zeros((1, 4))
    states = np.zeros((1, 5, 4))
    states[:, 2:] = linear(linear(linear(state, np.full((1, 2), 0.5)), np.full((1, 2), 0.5)), np.full((1, 2), 0.5))
    found = made(Plan(np.zeros((1, 5, 2)), states), 0, state, np.zeros((1, 2)))
    assert np.abs(found - 0.5).max() < 0.15                       # it reads state 2, not the zeros before it
    assert made.variant["lookahead"] == 3
    far = made(Plan(np.zeros((1, 2, 2)), states[:, 2:4]), 7, state, np.zeros((1, 2)))
    np.testing.assert_allclose(far, found)                        # past the end its last state stays the target


def test_inverse_dynamics_holds_like_tracking():
    made = inverse_dynamics(*chains(count=4), lookahead=1, steps=5, **SMALL)
    rng = np.random.default_rng(0)
    plan, goal = Plan(np.zeros((3, 9, 2)), rng.normal(size=(3, 9, 4))), np.zeros((3, 2))
    state = rng.normal(size=(3, 4))
    target = tracking().target(plan, 6, goal)
    here = made.regressor.act(np.concatenate([state, target - state], 1))
    np.testing.assert_array_equal(made(plan, 6, state, goal), here)


def towards_a_goal(count=60, steps=80):
    """Demonstrators that drive at goals of their own, changed every 20 steps, with noisy hands."""
    rng = np.random.default_rng(5)
    goals = rng.uniform(-2, 2, (steps // 20 + 1, count, 2))
    clock = iter(range(steps))
    return chains(count, steps, law=lambda state, rng: np.clip(
        2 * (goals[next(clock) // 20] - state[:, :2]) - state[:, 2:] + 0.3 * rng.normal(size=(count, 2)), -1, 1))


@pytest.mark.slow
def test_behaviour_cloning_beats_random_by_a_margin():
    driver = behaviour_cloning(*towards_a_goal(), reach=15, steps=600, **SMALL)
    rng = np.random.default_rng(3)
    start = np.concatenate([rng.uniform(0, 4, (40, 2)), np.zeros((40, 2))], 1)
    start[:, :2] = np.where(OPEN.maze.is_free(start[:, :2])[:, None], start[:, :2], 1.0)
    goals = np.full((40, 2), 2.0)
    cloned, random = (run_driver(OPEN, drive, start, goals, steps=60).returns.mean() for drive in
                      (driver, random_driver))
    assert cloned > random + 15
    assert isinstance(driver, Cloned) and driver.variant == {"reach": 15}


def test_what_was_learnt_is_read_again(tmp_path, monkeypatch):
    data, settings = chains(count=4), {"steps": 20, "cache": str(tmp_path), **SMALL}
    before = torch.random.get_rng_state()
    first = inverse_dynamics(*data, **settings)
    assert torch.equal(torch.random.get_rng_state(), before)      # nobody else's randomness is touched
    again = inverse_dynamics(*data, steps=20, **SMALL)            # trained anew, from the same seed
    monkeypatch.setattr("dforce.planning.baselines.cloning.fit", None)      # any training would fail now
    read = inverse_dynamics(*data, **settings)
    x = torch.randn(7, 8)
    assert torch.equal(first.regressor(x), read.regressor(x)) and torch.equal(first.regressor(x), again.regressor(x))
    with pytest.raises(TypeError):                                # other settings or data are another file
        inverse_dynamics(*data, seed=1, **settings)
    with pytest.raises(TypeError):
        inverse_dynamics(data[0], -data[1], **settings)
    assert len(list(tmp_path.iterdir())) == 1


def test_refusals():
    states, actions = chains(count=2, steps=5)
    with pytest.raises(ValueError, match="lookahead=6: the demonstrations have only 5 steps"):
        inverse_dynamics(states, actions, lookahead=6)
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        behaviour_cloning(states, actions, reach=0)
