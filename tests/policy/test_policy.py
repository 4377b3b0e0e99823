"""A policy's state is kept between steps, begins anew row by row and can be forked."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
import torch

from dforce.core.tree import fork, reset
from dforce.policy.evaluation import run_policy
from dforce.policy.linear import LinearPolicy
from dforce.policy.protocol import Policy

BALANCING = LinearPolicy([[1.0, 40.0, 2.0, 8.0]], limit=3.0)  # of position, angle and their speeds
PENDULUM = functools.partial(gymnasium.make, "InvertedPendulum-v5", max_episode_steps=120)


class Counting:
    """Does nothing, and counts the steps of each episode: its state is what an observation cannot tell."""

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def reset(self, n: int) -> torch.Tensor:
        return torch.zeros(n, dtype=torch.long)

    def act(self, observation: np.ndarray, state: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
        self.lengths.append(state.tolist())
        return np.zeros((len(observation), 1)), state + 1


def test_a_linear_policy_balances_the_pendulum_and_doing_nothing_does_not() -> None:
    balanced = run_policy(BALANCING, PENDULUM, 5, copies=2)
    assert [episode.seed for episode in balanced] == [*range(5)]
    assert all(episode.steps == 120 and episode.total == 120 and not episode.failed for episode in balanced)
    fallen = run_policy(Counting(), PENDULUM, 5, copies=2)
    assert all(episode.failed and episode.steps < 120 for episode in fallen)


def test_how_many_are_played_side_by_side_changes_nothing() -> None:
    weak: Policy = LinearPolicy([[0.0, 1.0, 0.0, 0.0]], limit=3.0, smoothing=0.5)
    alone, pairs, all_at_once = (run_policy(weak, PENDULUM, 7, seed=3, copies=copies) for copies in (1, 2, 7))
    assert alone == pairs == all_at_once and len({episode.steps for episode in alone}) > 1


def test_the_state_is_kept_within_an_episode_and_begins_anew_with_the_next() -> None:
    counting = Counting()
    episodes = run_policy(counting, PENDULUM, 6, copies=3)
    counted = sorted(step for row in counting.lengths for step in row)
    assert counted == sorted(step for episode in episodes for step in range(episode.steps))
    assert [len(row) for row in counting.lengths][-1] < 3  # the rows of episodes that are over are dropped


def test_a_state_is_forked_and_reset_by_row() -> None:
    policy = LinearPolicy([[1.0, -1.0]], smoothing=0.9)
    first, later = np.array([[0.4, 0.1], [0.2, 0.3]]), np.array([[-0.2, 0.0], [0.5, 0.1]])
    _, state = policy.act(first, policy.reset(2))
    action, after = policy.act(later, state)
    twice, _ = policy.act(np.concatenate([later, later]), fork(state, 2))
    np.testing.assert_array_equal(twice, np.concatenate([action, action]))
    assert torch.equal(state["y"], torch.tensor(first)) and not torch.equal(after["y"], state["y"])  # a value
    begun, _ = policy.act(later, reset(state, policy.reset(2), torch.tensor([False, True])))
    np.testing.assert_array_equal(begun[0], action[0])
    np.testing.assert_array_equal(begun[1], policy.act(later, policy.reset(2))[0][1])
    assert begun[1] != action[1]


def test_observations_may_be_dicts_of_arrays() -> None:
    class Two:
        def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict]:
            return {"image": np.zeros((2, 3)), "joint": np.array([float(seed)])}, {}

        def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict]:
            return self.reset(seed=0)[0], float(action[0]), False, True, {}

        def close(self) -> None: ...

    class Reading(Counting):
        def act(self, observation: dict[str, np.ndarray], state: torch.Tensor) -> tuple[np.ndarray, torch.Tensor]:
            assert observation["image"].shape == (len(state), 2, 3)
            return observation["joint"], state

    assert [episode.total for episode in run_policy(Reading(), Two, 3, seed=5)] == [5.0, 6.0, 7.0]


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"gain": [1.0]}, {"gain": [[1.0]], "limit": 0.0}, {"gain": [[1.0]], "smoothing": 1.0}):
        with pytest.raises(ValueError, match="want gain"):
            LinearPolicy(**wrong)


def test_input_that_cannot_be_is_refused() -> None:
    policy = LinearPolicy([[1.0, 2.0]])
    for observation in (np.array([[np.nan, 0.0]]), np.zeros(2), np.zeros((1, 3))):
        with pytest.raises(ValueError, match="an observation is"):
            policy.act(observation, policy.reset(1))

    class Diverged(LinearPolicy):
        def act(self, observation, state):
            return np.full((len(observation), 1), np.nan), state

    with pytest.raises(ValueError, match="finite actions"):
        run_policy(Diverged([[1.0] * 4]), PENDULUM, 2)
