"""Following a plan faster than it was made."""

import numpy as np
import pytest

from dforce.planning.control import Plan, tracking


def plan(steps: int = 20) -> Plan:
    time = np.arange(1, steps + 1) * 0.01
    states = np.stack([time, 2 * time, np.full(steps, 1.0), np.full(steps, 2.0)], -1)[None]
    return Plan(np.zeros((1, steps, 2)), states)


@pytest.mark.parametrize("pace", [0.5, 1.0, 1.3, 2.0])
def test_a_straight_plan_is_followed_at_the_pace(pace: float) -> None:
    follow = tracking(gain_p=1.0, gain_d=0.1, hold=False, pace=pace)
    for t in range(9):
        after = max(pace * (t + 1) * 0.01, 0.01)                         # the plan begins after its first step
        target = np.array([after, 2 * after, pace, 2 * pace])
        action = follow(plan(), t, np.zeros((1, 4)), np.ones((1, 2)))
        np.testing.assert_allclose(action[0], target[:2] + 0.1 * target[2:], atol=1e-12)


def test_pace_one_is_the_plan_itself_bit_for_bit() -> None:
    states = np.random.default_rng(0).normal(size=(3, 7, 4))
    obs, goal, some = np.zeros((3, 4)), np.ones((3, 2)), Plan(np.zeros((3, 7, 2)), states)
    for t in (0, 3, 9):
        wanted = np.clip(states[:, min(t, 6), :2] * 0.2 + states[:, min(t, 6), 2:] * 0.1, -1, 1)
        assert (tracking(gain_p=0.2, gain_d=0.1, hold=False)(some, t, obs, goal) == wanted).all()


def test_pace_must_be_positive() -> None:
    with pytest.raises(ValueError, match="pace=0 must be positive"):
        tracking(pace=0)
