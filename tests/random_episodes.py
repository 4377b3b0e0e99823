"""Random ragged episodes whose slices can be traced, for the tests of the data."""

from __future__ import annotations

import numpy as np

from dforce import data
from dforce.data import Episodes


def ragged(lengths=(7, 23, 4, 40, 12), *, width=(3, 2), seed=0, dtype=np.float64) -> Episodes:
    """Random episodes; observation column 0 numbers the episode, column 1 the step, so that slices can be traced."""
    rng = np.random.default_rng(seed)
    observations = [rng.normal(size=(n + 1, width[0])).astype(dtype) for n in lengths]
    for e, o in enumerate(observations):
        o[:, 0], o[:, 1] = e, np.arange(len(o))
    actions = [rng.uniform(-1, 1, size=(n, width[1])).astype(dtype) for n in lengths]
    rewards = [rng.normal(size=n) for n in lengths]
    goal = [rng.normal(size=(n, 2)) for n in lengths]
    return data.pack(observations, actions, rewards, infos={"goal": goal}, about={"dt": 0.01, "env": "random"})


def equal(a: Episodes, b: Episodes, *, infos=("goal",)) -> None:
    for key in ("observations", "actions", "rewards", "terminations", "truncations", "lengths"):
        left, right = getattr(a, key), getattr(b, key)
        assert left.dtype == right.dtype, key
        np.testing.assert_array_equal(left, right, err_msg=key)
    for key in infos:
        np.testing.assert_array_equal(a.infos[key], b.infos[key])
