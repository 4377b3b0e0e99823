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


def test_parts_are_lost_alone_and_cameras_fail_in_their_ways():
    rng = np.random.default_rng(0)
    seen = [{"front": rng.integers(0, 256, (2, 12, 16, 3), dtype=np.uint8), "arm": rng.normal(size=(2, 3))}
            for _ in range(2)]

    def second(shown, pixels=2, **more):
        faults = Faults(Corruption(missing=1.0, parts=("front",), shown=shown, pixels=pixels, **more), (0, 1))
        faults.observed(seen[0], np.zeros(2, bool))
        arrived, told = faults.observed(seen[1], np.zeros(2, bool))
        assert np.array_equal(arrived["arm"], seen[1]["arm"]) or more and arrived["front"].dtype == np.uint8
        return arrived["front"], told

    now = seen[1]["front"]
    assert {name: where.tolist() for name, where in second("told")[1].items()} == {"front": [True, True]}
    assert second("zeros")[1] is None and not second("zeros")[0].any()
    assert np.array_equal(second("last")[0], seen[0]["front"]) and second("last", noise=1.0)[0].dtype == np.uint8
    moved = second("shifted")[0]
    assert np.array_equal(moved[:, :, 2:], now[:, :, :-2]) and (moved[:, :, :2] == now[:, :, :1]).all()
    blurred = second("blurred")[0]
    assert abs(float(blurred[1, 5, 7, 2]) - now[1, 3:8, 5:10, 2].mean()) <= 0.5 and blurred.dtype == np.uint8
    assert abs(float(blurred[0, 0, 0, 0]) - now[0][np.ix_([0, 0, 0, 1, 2], [0, 0, 0, 1, 2])][..., 0].mean()) <= 0.5
    with pytest.raises(ValueError, match="the observation has .'eye'.$"):
        Faults(Corruption(missing=1.0, parts=("nose",)), (0,)).observed({"eye": np.zeros((1, 2))}, np.zeros(1, bool))


def test_a_push_comes_once_at_a_step_that_is_drawn_and_a_cube_is_moved_at_a_decision():
    seeds = range(200)
    faults = Faults(Corruption(push=2.0, moved=0.01, until=50), seeds)
    events = {seed: [(step, each) for step in range(120) for each in faults.disturbances(seed, step, step % 10 == 9)]
              for seed in seeds}
    again = Faults(Corruption(push=2.0, moved=0.01, until=50), (7,))
    assert [each.vector.tolist() for step in range(120) for each in again.disturbances(0, step, step % 10 == 9)] == [
        each.vector.tolist() for _, each in events[7]]
    steps, angles = {"arm": [], "moved": []}, []
    for each in events.values():
        assert sorted(disturbance.what for _, disturbance in each) == ["arm", "moved"]
        for step, (what, vector, place) in each:
            assert np.linalg.norm(vector) == pytest.approx(2.0 if what == "arm" else 0.01) and vector[2] == 0
            assert 0 <= place < 1
            steps[what].append(step)
            angles.append(np.arctan2(vector[1], vector[0]))
    assert max(steps["arm"]) < 50 and min(steps["arm"]) < 5 and all(step % 10 == 9 for step in steps["moved"])
    assert abs(np.mean(np.exp(1j * np.array(angles)))) < 0.15  # all directions
    assert not Faults(Corruption(), (0,)).disturbances(0, 0, True)
