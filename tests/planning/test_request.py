"""What planners are asked is checked where it comes in: one clear ValueError, and no plan of NaNs."""

from __future__ import annotations

import numpy as np
import pytest

from dforce.planning.diffuser import DiffuserPlanner
from dforce.planning.planner import DiffusionPlanner
from tests.small_planner import GOALS, STARTS, small

BROKEN = STARTS.copy()
BROKEN[3, 1] = np.nan


@pytest.mark.parametrize("kind", [DiffusionPlanner, DiffuserPlanner])
@pytest.mark.parametrize("obs, goal, remaining, message", [
    (BROKEN, GOALS, 4, r"obs must be finite, got nan at \[3, 1\]"), (STARTS, GOALS * np.inf, 4, "goal must be finite"),
    (STARTS[0], GOALS, 4, r"obs must be \[N, 4\].*got \[4\]"), (STARTS[:, :3], GOALS, 4, r"\[N, 4\].*got \[5, 3\]"),
    (STARTS, GOALS[0], 4, r"goal must be \[N, G\] with the 5 rows"), (STARTS, GOALS[:2], 4, "the 5 rows of obs"),
    (STARTS.astype(object), GOALS, 4, "real numbers, got object"), (STARTS + 1j, GOALS, 4, "real numbers, got complex"),
    (STARTS[:0], GOALS[:0], 4, r"obs must be"), (STARTS, GOALS, 0, "remaining must be >= 1")])
def test_a_request_that_cannot_be_planned_is_refused(kind, obs, goal, remaining, message):
    planner = small(kind, causal=kind is DiffusionPlanner, **({"horizon": 4} if kind is DiffuserPlanner else {}))
    with pytest.raises(ValueError, match=message):
        planner(obs, goal, remaining, np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        next(iter(planner.denoising(obs, goal, remaining)))
