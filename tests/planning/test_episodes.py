"""`episodes` of a planner bounds memory and changes no plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce.planning.diffuser import DiffuserPlanner
from dforce.planning.energy import Terminal
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.returns import LowTemperature
from dforce.planning.search.best_of_n import BestOfN
from dforce.planning.search.mctd import TreeDiffusionPlanner
from tests.small_planner import GOALS, LAYOUT, STARTS, small

PLANNERS = {
    "plain": (DiffusionPlanner, {"eta": 1.0, "order": 1}),
    "draws": (DiffusionPlanner, {"draws": 3}),
    "futures": (DiffusionPlanner, {"draws": 4, "energy": Terminal, "options": (
        ("branch", "posterior"), ("futures", "sequential"), ("chunk", 2))}),
    "padded": (DiffusionPlanner, {"causal": False, "delay": 0, "pad_to": 16, "draws": 3}),
    "low temperature": (LowTemperature, {"eta": 1.0, "order": 1}),
    "best of n": (BestOfN, {"n": 3, "draws": 2, "eta": 1.0, "order": 1}),
    "mctd": (TreeDiffusionPlanner, {"sub_plans": 2, "iterations": 3, "draws": 2}),
    "diffuser": (DiffuserPlanner, {"causal": False, "eta": 1.0, "order": 1, "layout": {**LAYOUT, "horizon": 8}}),
}


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.quick(3)
def test_plans_do_not_depend_on_how_many_are_made_at_once(name) -> None:
    kind, settings = PLANNERS[name]
    settings = dict(settings)
    layout = settings.pop("layout", LAYOUT)
    planner = small(kind, **settings).with_(layout=layout)
    whole, *parts = (planner.with_(episodes=size)(STARTS, GOALS, 8, np.random.default_rng(3)).states
                     for size in (256, 2, 3))  # five starts: two, two, one; three, two
    for states in parts:
        torch.testing.assert_close(*(torch.from_numpy(each) for each in (states, whole)), rtol=1e-4, atol=1e-4)
