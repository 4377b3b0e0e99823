"""Data in memory: a window is a slice, a batch is a function of its number, a normaliser has an inverse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dforce import data
from dforce.data import Affine, Batch, Episodes, Windows
from dforce.data.draws import philox_uniform
from tests.random_episodes import ragged

# batch


@pytest.mark.parametrize("size", [1, 2, 5])
def test_unstack_inverts_stack(size):
    x = torch.randn(3, 10, 4)
    stacked = data.stack(x, size)
    assert stacked.shape == (3, 10 // size, 4 * size)
    torch.testing.assert_close(stacked[:, 0], x[:, :size].flatten(1), rtol=0, atol=0)  # consecutive steps, in order
    torch.testing.assert_close(data.unstack(stacked, size), x, rtol=0, atol=0)


def test_stack_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="10 raw tokens cannot be stacked by 4"):
        data.stack(torch.zeros(1, 10, 2), 4)
    with pytest.raises(ValueError, match="width 10 do not hold 4"):
        data.unstack(torch.zeros(1, 2, 10), 4)


def test_batch_rows_and_check():
    cond = {"token": {"action": torch.randn(4, 6, 2)}, "static": {"start": torch.randn(4, 3)}}
    batch = data.checked_batch(Batch(torch.randn(4, 6, 5), torch.ones(4, 6).bool(), cond, torch.ones(4).bool()))
    picked = batch.rows(torch.tensor([2, 0]))
    assert torch.equal(picked.cond["token"]["action"], cond["token"]["action"][[2, 0]])
    assert torch.equal(picked.x, batch.x[[2, 0]]) and torch.equal(picked.cond["static"]["start"],
                                                                  cond["static"]["start"][[2, 0]])
    with pytest.raises(ValueError, match=r"mask must begin with shape \(4, 6\)"):
        data.checked_batch(batch._replace(mask=torch.ones(4, 5).bool()))


# normaliser


def test_affine_agrees_with_numpy_and_inverts():
    x = np.random.default_rng(0).normal([5, -300, 2], [2, 40, 0], size=(4000, 3))
    affine = Affine.fit(x)
    np.testing.assert_allclose(affine.mean, x.mean(0), rtol=1e-6)
    np.testing.assert_allclose(affine.std[:2], x.std(0)[:2], rtol=1e-6)
    assert affine.std[2] == 1  # a constant column
    z = affine.normalize(torch.from_numpy(x).float())
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, unbiased=False), torch.tensor([1.0, 1, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(affine.denormalize(z), torch.from_numpy(x).float(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(affine.part(1, 3).normalize(torch.from_numpy(x[:, 1:]).float()), z[:, 1:])


def test_affine_travels_in_the_state_dict():
    affine, empty = Affine([1, 2], [3, 4]), Affine.identity(2)
    empty.load_state_dict(affine.state_dict())
    assert torch.equal(empty.mean, affine.mean) and torch.equal(empty.std, affine.std)


def test_affine_refuses():
    with pytest.raises(ValueError, match="std finite and positive"):
        Affine([0, 0], [1, 0])
    with pytest.raises(ValueError, match="unstack stacked tokens first"):
        Affine.identity(3).normalize(torch.zeros(2, 6))


def far_away(dtype=np.float64) -> Episodes:
    """Two episodes with the observations 5e6 + .1 t and 7, and actions of std 5e-7."""
    rng, time = np.random.default_rng(0), 5e6 + 0.1 * np.arange(83)
    observations = [np.stack([time, np.full(83, 7.0)], 1).astype(dtype)] * 2
    actions = [rng.normal(0, 5e-7, (82, 1)).astype(dtype) for _ in range(2)]
    return data.pack(observations, actions, [np.zeros(82)] * 2,
                     about={"observation_names": ["time", "seven"], "action_names": ["push"]})


def test_columns_are_centred_in_float64_before_they_become_float32():
    episodes, time = far_away(), 0.1 * np.arange(1, 83)
    with pytest.warns(UserWarning, match="^columns seven are constant"):
        windows = Windows(episodes, horizon=82, held_out=0)
    mean, std = windows.normalizer.mean, windows.normalizer.std
    assert std[1].item() == pytest.approx(time.std(), rel=1e-6) and mean[1].item() == 5e6 + 4
    assert std[0].item() == pytest.approx(episodes.actions.std(), rel=1e-6)  # compared with the actions' own size
    x, start = (lambda batch: (batch.x[0], batch.cond["static"]["start"][0]))(windows.gather(torch.tensor([0])))
    np.testing.assert_allclose(x[:, 1].diff().numpy(), 0.1 / time.std(), rtol=1e-4)
    np.testing.assert_allclose(start[0], (5e6 - mean[1].double()) / std[1].double(), rtol=1e-6)
    assert x[:, 0].std(unbiased=False).item() == pytest.approx(1, abs=0.2) and (x[:, 2] == 0).all()
    affine = Affine.fit(episodes.observations)
    assert affine.std.tolist() == pytest.approx([(0.1 * np.arange(83)).std(), 1], rel=1e-6)


def test_offsets_change_no_bit_of_columns_that_float32_holds():
    rng = np.random.default_rng(1)
    near = [rng.normal([3, -40], [1, 0.2], (50, 2)) for _ in range(2)]  # float64
    pack = lambda observations: data.pack(observations, [o[1:, :1] for o in observations], [np.zeros(49)] * 2)  # noqa: E731
    windows = Windows(pack(near), horizon=7, held_out=0)
    rounded = Windows(pack([o.astype(np.float32) for o in near]), horizon=7, held_out=0)
    assert torch.equal(windows.normalizer.mean, rounded.normalizer.mean)
    assert torch.equal(windows.batch_at(0).x, rounded.batch_at(0).x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_columns_spread_by_one_value_are_named(dtype):
    x = np.random.default_rng(0).normal(size=(5000, 3)).astype(dtype)
    x[:, 2] = x[:, 2] > 2.5  # a rare flag is no extreme value
    x[7, 1] = 1e30
    with pytest.warns(UserWarning, match="^columns speed are spread by a few extreme values") as caught:
        Affine.fit(x, names=["place", "speed", "flag"])
    assert len(caught) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_data_are_located(value):
    episodes = ragged()
    episodes.observations[8 + 24 + 2, 2] = value  # third episode, third observation
    with pytest.raises(
        ValueError, match=r"observations holds 1 non-finite .* episode 2, step 2, column observation\[2\]"
    ):
        Windows(episodes, horizon=4)
    episodes = ragged()
    episodes.actions[7 + 22, 1] = value
    with pytest.raises(ValueError, match=r"actions .* episode 1, step 22, column action\[1\]"):
        Windows(episodes, horizon=4)


# windows


@pytest.mark.parametrize("stack", [1, 3])
def test_windows_equal_naive_slices(stack):
    episodes, horizon = ragged(), 6
    windows = Windows(episodes, horizon=horizon, stack=stack, held_out=0)
    naive = []
    for e, length in enumerate(episodes.lengths):
        o, a, _ = episodes.episode(e)
        raw = np.concatenate([a, o[1:]], 1)
        for i in range(max(length - horizon, 0) + 1 if length >= stack else 0):
            take = np.minimum(np.arange(i, i + horizon), length - 1)
            real = (np.arange(i, i + horizon) < length).reshape(-1, stack).all(1)
            naive.append((raw[take], real, o[i]))
    assert len(windows) == len(naive)
    batch = windows.gather(torch.arange(len(windows)))
    mean, std = windows.normalizer.mean.numpy(), windows.normalizer.std.numpy()
    x = np.stack([(raw.astype(np.float32) - mean) / std for raw, _, _ in naive])
    np.testing.assert_array_equal(data.unstack(batch.x, stack).numpy(), x)
    np.testing.assert_array_equal(batch.mask.numpy(), np.stack([real for _, real, _ in naive]))
    start = np.stack([o.astype(np.float32) for _, _, o in naive])
    np.testing.assert_array_equal(batch.cond["static"]["start"].numpy(), (start - mean[2:]) / std[2:])
    assert batch.x.shape[2:] == windows.event_shape and batch.first.all()
    data.checked_batch(batch)


def test_batch_is_a_function_of_its_number():
    episodes = ragged()
    windows = Windows(episodes, horizon=4, batch=16, seed=3)
    forth = [windows.batch_at(s).x for s in range(6)]
    again = Windows(episodes, horizon=4, batch=16, seed=3)
    for s in (5, 0, 3, 3):
        assert torch.equal(again.batch_at(s).x, forth[s])
    assert not torch.equal(forth[0], forth[1])
    assert not torch.equal(Windows(episodes, horizon=4, batch=16, seed=4, normalizer=windows.normalizer,
                                   held_out=0).batch_at(0).x, forth[0])


@pytest.mark.parametrize("sequential", [False, True])
def test_virtual_shards_partition_the_batch(sequential):
    windows = Windows(ragged(), horizon=4, batch=24, virtual_shards=8, sequential=sequential)
    whole = windows.batch_at(7)
    for cuts in ([0, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 3, 8]):
        parts = [windows.batch_at(7, shards=pair) for pair in zip(cuts, cuts[1:], strict=False)]
        for name in ("x", "mask", "first"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
        assert torch.equal(torch.cat([p.cond["static"]["start"] for p in parts]), whole.cond["static"]["start"])
    assert Windows(ragged(), horizon=4, batch=10, virtual_shards=8).virtual_shards == 5
    with pytest.raises(ValueError, match="shards"):
        windows.batch_at(0, shards=(4, 9))


def test_counter_stream_is_fixed_and_uniform():
    # frozen values: a resumed run must draw what it would have drawn, under any version of numpy
    frozen = [0.6646485334270675, 0.14268204167862508, 0.8547230429258507]
    assert philox_uniform(3, seed=1, stream=1, step=5).tolist() == frozen
    assert philox_uniform(9, seed=1, stream=1, step=5)[:3].tolist() == frozen
    u = np.concatenate([philox_uniform(1000, seed=0, stream=1, step=s) for s in range(100)])
    assert abs(u.mean() - 0.5) < 4 / np.sqrt(12 * u.size) and 0 <= u.min() and u.max() < 1
    assert abs(np.corrcoef(u[:-1000], u[1000:])[0, 1]) < 4 / np.sqrt(u.size)  # between steps


def test_windows_are_drawn_uniformly():
    windows = Windows(ragged((30, 10)), horizon=5, batch=64, held_out=0)
    seen = torch.cat([windows.batch_at(s).cond["static"]["start"] for s in range(200)])
    _, counts = torch.unique(seen, dim=0, return_counts=True)
    assert len(counts) == len(windows) == 26 + 6
    expected = 200 * 64 / 32
    assert ((counts - expected) ** 2 / expected).sum() < 70  # chi-square, 31 degrees of freedom: p = 1e-4


def test_split_is_by_episode():
    episodes = ragged(tuple(range(10, 60)))
    train, val = (Windows(episodes, horizon=5, held_out=0.1, split=s, seed=2) for s in ("train", "val"))
    numbers = []
    for windows in (train, val):
        x = windows.normalizer.denormalize(windows.gather(torch.arange(len(windows))).x)
        numbers.append(set(x[..., 2].round().int().flatten().tolist()))  # column 0 of the observation
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 50 and len(numbers[1]) == 5
    assert torch.equal(train.normalizer.mean, val.normalizer.mean)  # of the training episodes in both
    for count in (2, 3, 1000):
        a, b = data.split_episodes(count, 1e-6, 0)
        assert len(b) == 1 and sorted([*a, *b]) == list(range(count))
    with pytest.raises(ValueError, match="no episode is held out: 1 episode"):
        Windows(ragged((20,)), horizon=5, split="val")


def test_sequential_windows_go_on_where_they_ended():
    episodes = ragged((7, 23, 4, 40, 12, 1))
    windows = Windows(episodes, horizon=6, stack=2, batch=3, held_out=0, sequential=True)
    normal = windows.normalizer
    before, rounds = None, len(windows)
    steps_seen = set()
    for s in range(rounds):
        batch = windows.batch_at(s)
        raw = normal.denormalize(data.unstack(batch.x, 2))
        start = normal.part(2, 5).denormalize(batch.cond["static"]["start"])
        for row in range(3):
            episode, step = start[row, :2].round().int().tolist()
            real = int(batch.mask[row].sum()) * 2
            assert raw[row, :real, 3].round().tolist() == [step + 1 + i for i in range(real)]
            if s == 0:
                assert batch.first[row]
            elif not batch.first[row]:
                assert before[row] == (episode, step - 6)
            else:
                assert step == 0
            steps_seen |= {(episode, step + i) for i in range(real)}
        before = [tuple(v) for v in start[:, :2].round().int().tolist()]
    assert steps_seen == {(e, i) for e, n in enumerate(episodes.lengths) for i in range(n // 2 * 2)}  # all whole tokens
    assert torch.equal(windows.batch_at(rounds + 1).x, windows.batch_at(1).x)


def test_windows_refuse():
    episodes = ragged()
    for arguments, message in [(dict(horizon=10, stack=3),
                                "horizon=10 is not divisible by stack=3: the nearest horizon is 9"),
                               (dict(horizon=41), "every episode, the longest has 40 .*take horizon=40 or less"),
                               (dict(horizon=4, split="test"), "'train' or 'val', got 'test'"),
                               (dict(horizon=0), "must be positive"), (dict(horizon=4, held_out=1.0), r"in \[0, 1\)"),
                               (dict(horizon=4, normalizer=Affine.identity(4)),
                                "the normaliser has 4 columns, actions and observations have 5")]:
        with pytest.raises(ValueError, match=message):
            Windows(episodes, **arguments)


def test_layout_says_what_the_numbers_mean():
    layout = Windows(ragged(), horizon=6, stack=2).layout
    assert json.loads(json.dumps(layout)) == layout
    assert layout["action"] == [0, 2] and layout["observation"] == [2, 5] and layout["stack"] == 2
    assert layout["names"][:3] == ["action[0]", "action[1]", "observation[0]"] and layout["dt"] == 0.01
