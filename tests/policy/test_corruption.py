"""What is lost, noisy or late in an evaluation: as much as was asked for, and the same for every policy."""

from __future__ import annotations

import numpy as np
import pytest

from dforce.policy.corruption import Corruption, Faults


def lost(corruption, steps=4000, due=False, seeds=(0, 1)):
    faults = Faults(corruption, seeds)
    observation = np.ones((len(seeds), 3))
    told = [faults.observed(observation, np.full(len(seeds), due))[1] for _ in range(steps)]
    return np.array(told)


@pytest.mark.parametrize("burst", [1, 5])
def test_as_much_is_lost_as_was_asked_for_in_bursts_as_long_as_asked_for(burst):
    gone = lost(Corruption(missing=0.3, burst=burst))
    assert not gone[0].any() and gone.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(gone, lost(Corruption(missing=0.3, burst=burst)))
    np.testing.assert_array_equal(gone[:, :1], lost(Corruption(missing=0.3, burst=burst), seeds=(0,)))
    edges = np.flatnonzero(np.diff(gone[:, 0].astype(int)))
    lengths = np.diff(edges)[(0 if gone[edges[0] + 1, 0] else 1)::2]
    assert (lengths % burst == 0).all() and lengths.min() == burst
    assert not lost(Corruption(missing=1.0, at_decisions=True)).any()
    assert lost(Corruption(missing=1.0, at_decisions=True), due=True)[1:].all()


def test_what_is_lost_is_told_or_replaced():
    seen = [{"eye": np.full((2, 2, 2), float(t)), "joint": np.full((2, 1), 10.0 * t)} for t in range(4)]
    for shown in ("told", "last", "zeros"):
        faults = Faults(Corruption(missing=1.0, shown=shown), (0, 1))
        arrived, told = zip(*(faults.observed({k: v + 1 for k, v in o.items()}, np.ones(2, bool)) for o in seen),
                            strict=True)
        assert all(each["eye"].shape == (2, 2, 2) for each in arrived)
        if shown == "told":
            assert told[0].tolist() == [False] * 2 and all(each.all() for each in told[1:])
        else:
            assert told == (None,) * 4
            assert [float(each["joint"][0, 0]) for each in arrived[1:]] == ([1.0] * 3 if shown == "last" else [0.0] * 3)


def test_noise_and_delay():
    faults = Faults(Corruption(noise=0.5), range(50))
    noisy = np.stack([faults.observed(np.ones((50, 20)), np.ones(50, bool))[0] for _ in range(20)])
    assert noisy.std() == pytest.approx(0.5, rel=0.05) and noisy.mean() == pytest.approx(1, abs=0.02)
    late = Faults(Corruption(delay=3), (0,))
    plans = [np.arange(4 * i, 4 * i + 4, dtype=float)[None, :, None] for i in range(3)]
    assert np.concatenate([late.executed(plan)[0, :, 0] for plan in plans]).tolist() == [0, 0, 0, *range(9)]
    for wrong in ({"missing": 1.5}, {"burst": 0}, {"delay": -1}):
        with pytest.raises(ValueError, match="want missing"):
            Corruption(**wrong)
