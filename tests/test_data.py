"""Data: what is read is what was written, a window is a slice, a batch is a function of its number."""

from __future__ import annotations

import json
import os
import warnings

import numpy as np
import pytest
import torch

from dforce import data
from dforce.data import Affine, Batch, Episodes, Windows, store, trajectories


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


def test_batch_rows_tokens_and_check():
    cond = {"token": {"action": torch.randn(4, 6, 2)}, "static": {"start": torch.randn(4, 3)}}
    batch = data.check(Batch(torch.randn(4, 6, 5), torch.ones(4, 6).bool(), cond, torch.ones(4).bool()))
    picked = batch.rows(torch.tensor([2, 0]))
    assert torch.equal(picked.cond["token"]["action"], cond["token"]["action"][[2, 0]])
    assert torch.equal(picked.x, batch.x[[2, 0]]) and torch.equal(
        picked.cond["static"]["start"], cond["static"]["start"][[2, 0]]
    )
    cut = data.cond_tokens(cond, 1, 3)
    assert torch.equal(cut["token"]["action"], cond["token"]["action"][:, 1:3]) and cut["static"] is cond["static"]
    with pytest.raises(ValueError, match=r"mask must begin with shape \(4, 6\)"):
        data.check(batch._replace(mask=torch.ones(4, 5).bool()))


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
    data.check(batch)


def test_batch_is_a_function_of_its_number():
    episodes = ragged()
    windows = Windows(episodes, horizon=4, batch=16, seed=3)
    forth = [windows.batch_at(s).x for s in range(6)]
    again = Windows(episodes, horizon=4, batch=16, seed=3)
    for s in (5, 0, 3, 3):
        assert torch.equal(again.batch_at(s).x, forth[s])
    assert not torch.equal(forth[0], forth[1])
    assert not torch.equal(
        Windows(episodes, horizon=4, batch=16, seed=4, normalizer=windows.normalizer, held_out=0).batch_at(0).x,
        forth[0],
    )


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
    from dforce.data.windows import uniform

    # frozen values: resuming an old run must draw what it would have drawn
    np.testing.assert_array_equal(uniform(3, seed=1, stream=1, step=5), uniform(5, seed=1, stream=1, step=5)[:3])
    u = np.concatenate([uniform(1000, seed=0, stream=1, step=s) for s in range(100)])
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
    for arguments, message in [
        (dict(horizon=10, stack=3), "horizon 10 is not divisible by stack 3: the nearest horizon is 9"),
        (dict(horizon=41), "longer than every episode, the longest has 40"),
        (dict(horizon=4, split="test"), "'train' or 'val', got 'test'"),
        (dict(horizon=0), "must be positive"),
        (dict(horizon=4, held_out=1.0), r"in \[0, 1\)"),
        (
            dict(horizon=4, normalizer=Affine.identity(4)),
            "the normaliser has 4 columns, actions and observations have 5",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            Windows(episodes, **arguments)


def test_layout_says_what_the_numbers_mean():
    layout = Windows(ragged(), horizon=6, stack=2).layout
    assert json.loads(json.dumps(layout)) == layout
    assert layout["action"] == [0, 2] and layout["observation"] == [2, 5] and layout["stack"] == 2
    assert layout["names"][:3] == ["action[0]", "action[1]", "observation[0]"] and layout["dt"] == 0.01


# Minari


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minari_round_trip_is_exact(tmp_path, dtype):
    episodes = ragged(dtype=dtype)
    folder = data.save_episodes("dforce/random-v1", episodes, root=tmp_path, about={"seed": 4})
    read = data.load_episodes("dforce/random-v1", root=tmp_path, infos=["goal"])
    equal(read, episodes)
    assert read.about["seed"] == 4 and read.about["dt"] == 0.01 and read.about["dataset"] == "dforce/random-v1"
    equal(data.load_episodes(folder, infos=["goal"]), episodes)
    assert data.list_datasets(tmp_path) == ["dforce/random-v1"]
    assert "MINARI_DATASETS_PATH" not in os.environ or os.environ["MINARI_DATASETS_PATH"] != str(tmp_path)


def test_minari_itself_reads_what_we_write(tmp_path, monkeypatch):
    import minari

    episodes = ragged()
    data.save_episodes("dforce/random-v1", episodes, root=tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert list(minari.list_local_datasets()) == ["dforce/random-v1"]
    dataset = minari.load_dataset("dforce/random-v1")
    assert dataset.total_steps == episodes.steps
    for e, stored in enumerate(dataset.iterate_episodes()):
        np.testing.assert_array_equal(stored.observations, episodes.episode(e)[0])
        assert len(stored.infos["goal"]) == len(stored.observations)
    # and the way through Minari's own reader, which other formats take, gives the same
    direct = trajectories._raw_episodes(
        tmp_path / "dforce/random-v1/data", {"data_format": "other", "total_episodes": 5}
    )
    for e, raw in enumerate(direct):
        np.testing.assert_array_equal(raw["actions"], episodes.episode(e)[1])


def _plain_minari(name, env, *, infos=True, seed=0):
    """What another program would leave: random episodes of a Gymnasium environment, written by Minari alone."""
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for e in range(3):
        observation, _ = env.reset(seed=seed + e)
        env.action_space.seed(seed + e)
        rows = {"observations": [observation], "actions": [], "rewards": [], "terminations": [], "truncations": []}
        for _ in range(20 + e):
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            for key, value in zip(rows, (observation, action, reward, terminated, truncated), strict=True):
                rows[key].append(value)
            if terminated:
                break
        if isinstance(observation, dict):
            rows["observations"] = {k: np.stack([o[k] for o in rows["observations"]]) for k in observation}
        buffers.append(EpisodeBuffer(id=e, **rows))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(name, buffers, env=env)
    return buffers


@pytest.mark.parametrize("env_id, actions", [("Pendulum-v1", 1), ("CartPole-v1", 2)])
def test_plain_minari_datasets_train(tmp_path, monkeypatch, env_id, actions):
    import gymnasium

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = _plain_minari("classic/control-v0", gymnasium.make(env_id))
    episodes = data.load_episodes("classic/control-v0")
    np.testing.assert_array_equal(episodes.observations, np.concatenate([b.observations for b in buffers]))
    assert episodes.actions.shape[1] == actions and episodes.about["env"] == env_id
    if env_id == "CartPole-v1":
        np.testing.assert_array_equal(episodes.actions.argmax(1), np.concatenate([b.actions for b in buffers]))
        assert (episodes.actions.sum(1) == 1).all()
    batch = Windows(episodes, horizon=4, stack=2, batch=8).batch_at(0)
    assert batch.x.shape == (8, 2, 2 * (actions + episodes.observations.shape[1])) and torch.isfinite(batch.x).all()


def test_dict_observations_are_joined_and_images_refused(tmp_path, monkeypatch):
    import gymnasium
    from gymnasium import spaces

    class Goal(gymnasium.Env):
        action_space = spaces.Box(-1, 1, (2,))
        observation_space = spaces.Dict(
            {"observation": spaces.Box(-9, 9, (3,)), "desired_goal": spaces.Box(-9, 9, (2,))}
        )

        def reset(self, *, seed=None, options=None):
            self.observation_space.seed(seed)
            return self.observation_space.sample(), {}

        def step(self, action):
            return self.observation_space.sample(), 0.0, False, False, {}

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    buffers = _plain_minari("goals/dict-v0", Goal())
    episodes = data.load_episodes("goals/dict-v0")
    names = episodes.about["observation_names"]
    column = names.index("observation.desired_goal[0]")
    joined = np.concatenate([b.observations["desired_goal"] for b in buffers])
    np.testing.assert_array_equal(episodes.observations[:, column : column + 2], joined)
    assert len(names) == 5
    with pytest.raises(ValueError, match="vectors are read here"):
        data.flatten.width_names(spaces.Box(0, 255, (64, 64, 3), np.uint8), "observation")


def test_unknown_dataset_lists_those_that_exist(tmp_path):
    with pytest.raises(ValueError, match="Datasets there: none.*dforce data maze"):
        data.load_episodes("dforce/maze2d-umaze-v1", root=tmp_path)
    data.save_episodes("dforce/maze2d-umaze-v1", ragged(), root=tmp_path)
    with pytest.raises(ValueError, match="did you mean 'dforce/maze2d-umaze-v1'"):
        data.load_episodes("dforce/maze2d-umaz-v1", root=tmp_path)
    with pytest.raises(ValueError, match="no info 'qpos', it has .'goal'"):
        data.load_episodes("dforce/maze2d-umaze-v1", root=tmp_path, infos=["qpos"])
    with pytest.raises(ValueError, match="is no Minari dataset name"):
        data.save_episodes("x/umaze", ragged(), root=tmp_path)


def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path):
    folder = data.save_episodes("dforce/random-v1", ragged(), root=tmp_path)
    path = folder / "data" / "main_data.hdf5"
    good = path.read_bytes()
    for position in np.random.default_rng(0).integers(len(good), size=20):
        bad = bytearray(good)
        bad[position] ^= 4
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="main_data.hdf5 is damaged: its sha256"):
            data.load_episodes("dforce/random-v1", root=tmp_path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=f"main_data.hdf5 has {len(good) // 2} bytes, but {len(good)} were saved"):
        data.load_episodes("dforce/random-v1", root=tmp_path)
    (folder / store.CHECKSUMS).unlink()  # a dataset of another program: what HDF5 itself says is passed on
    with pytest.raises(ValueError, match="main_data.hdf5 is damaged or incomplete"):
        data.load_episodes("dforce/random-v1", root=tmp_path)
    (folder / "data" / "metadata.json").write_text("{")
    with pytest.raises(ValueError, match="metadata.json cannot be read"):
        data.load_episodes("dforce/random-v1", root=tmp_path)


def test_overwriting_is_asked_for_and_never_leaves_half(tmp_path, monkeypatch):
    old, new = ragged(seed=1), ragged(seed=2)
    data.save_episodes("dforce/random-v1", old, root=tmp_path)
    with pytest.raises(ValueError, match="pass overwrite=True"):
        data.save_episodes("dforce/random-v1", new, root=tmp_path)

    def interrupted(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_checksums", interrupted)
        with pytest.raises(KeyboardInterrupt):
            data.save_episodes("dforce/random-v1", new, root=tmp_path, overwrite=True)
        with pytest.raises(KeyboardInterrupt):
            data.save_episodes("dforce/other-v1", new, root=tmp_path)
    assert data.list_datasets(tmp_path) == ["dforce/random-v1"]
    assert [p.name for p in tmp_path.iterdir()] == ["dforce"]  # nothing half-written stays
    equal(data.load_episodes("dforce/random-v1", root=tmp_path, infos=["goal"]), old)

    replace = os.replace
    with monkeypatch.context() as patch:  # killed between the two renames: the old one is aside, and comes back

        def killed(source, target):
            replace(source, target)
            if str(target).endswith(".replaced"):
                raise KeyboardInterrupt

        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            data.save_episodes("dforce/random-v1", new, root=tmp_path, overwrite=True)
    equal(data.load_episodes("dforce/random-v1", root=tmp_path, infos=["goal"]), old)
    data.save_episodes("dforce/random-v1", new, root=tmp_path, overwrite=True)
    equal(data.load_episodes("dforce/random-v1", root=tmp_path, infos=["goal"]), new)


# D4RL


@pytest.mark.parametrize("lengths", [(40,), (7, 23, 1, 12)])
def test_d4rl_round_trip(tmp_path, lengths):
    episodes = ragged(lengths, width=(4, 2), dtype=np.float32)
    data.write_d4rl(tmp_path / "maze.hdf5", episodes)
    equal(data.read_d4rl(tmp_path / "maze.hdf5"), episodes)
    equal(data.load_episodes(tmp_path / "maze.hdf5"), episodes)
    import h5py

    with h5py.File(tmp_path / "maze.hdf5") as file:
        assert {"observations", "actions", "rewards", "terminals", "timeouts", "infos"} == set(file)
        assert len(file["observations"]) == len(file["actions"]) == len(file["infos/goal"])
        np.testing.assert_array_equal(file["infos/qvel"][()], file["observations"][:, 2:])


def test_d4rl_timeouts_mark_targets_and_cut_on_demand(tmp_path):
    import h5py

    rows, rng = 25, np.random.default_rng(0)
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as file:
        for key, shape in (("observations", (rows, 4)), ("actions", (rows, 2)), ("rewards", (rows,))):
            file[key] = rng.normal(size=shape).astype(np.float32)
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.isin(np.arange(rows), [9, 10, 19])
        o, a = file["observations"][()], file["actions"][()]
    whole = data.read_d4rl(tmp_path / "d4rl.hdf5")
    assert whole.lengths.tolist() == [24] and np.flatnonzero(whole.truncations).tolist() == [9, 10, 19]
    np.testing.assert_array_equal(whole.actions, a[:-1])
    pieces = data.read_d4rl(tmp_path / "d4rl.hdf5", max_length=10)
    assert pieces.lengths.tolist() == [10, 10, 4]
    np.testing.assert_array_equal(pieces.actions, a[:-1])  # no step is lost, boundary observations are shared
    np.testing.assert_array_equal(pieces.episode(1)[0], o[10:21])
    cut = data.read_d4rl(tmp_path / "d4rl.hdf5", cut_at=("terminals", "timeouts"))
    assert cut.lengths.tolist() == [9, 8, 4]
    np.testing.assert_array_equal(cut.episode(1)[0], o[11:20])


def test_d4rl_damage_is_named(tmp_path):
    path = tmp_path / "maze.hdf5"
    data.write_d4rl(path, ragged((200,), width=(4, 2)))
    good = bytearray(path.read_bytes())
    values = ragged((200,), width=(4, 2)).observations.tobytes()
    position = bytes(good).find(values[:64])
    assert position > 0
    good[position] ^= 1
    path.write_bytes(good)
    with pytest.raises(ValueError, match="maze.hdf5 is damaged"):
        data.read_d4rl(path)
    path.write_bytes(good[:100])
    with pytest.raises(ValueError, match="maze.hdf5 is damaged"):
        data.read_d4rl(path)
    import h5py

    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((3, 4))
    with pytest.raises(ValueError, match="lacks actions, rewards, terminals"):
        data.read_d4rl(path)


# mazes


def test_maze_dataset_end_to_end(tmp_path):
    envs = pytest.importorskip("dforce.envs")
    name = data.make_maze_dataset("umaze", steps=3000, seed=5, root=tmp_path)
    assert name == "dforce/maze2d-umaze-v1"
    episodes = data.load_episodes(name, root=tmp_path, infos=["goal"])
    made = envs.generate(envs.get_maze("umaze"), steps=3000, noise=0.5, chains=3, seed=5)
    np.testing.assert_array_equal(episodes.observations, made["observations"].reshape(-1, 4))
    np.testing.assert_array_equal(episodes.actions, made["actions"].reshape(-1, 2))
    np.testing.assert_array_equal(episodes.infos["goal"], made["goals"].reshape(-1, 2))
    windows = Windows(episodes, horizon=300, stack=10, batch=8)
    assert windows.batch_at(0).x.shape == (8, 30, 60) and windows.layout["env"] == "maze2d-umaze"
    before = (tmp_path / name / "data" / "main_data.hdf5").stat().st_mtime_ns
    assert data.make_maze_dataset("umaze", steps=3000, seed=5, root=tmp_path) == name  # equal: left as it is
    assert (tmp_path / name / "data" / "main_data.hdf5").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="made otherwise: pass overwrite=True"):
        data.make_maze_dataset("umaze", steps=3000, seed=6, root=tmp_path)
    data.make_maze_dataset("umaze", steps=3000, seed=6, root=tmp_path, overwrite=True)
    assert data.load_episodes(name, root=tmp_path).about["seed"] == 6


def test_maze_dataset_recovers_its_environment(tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    import minari

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    name = data.make_maze_dataset("umaze", steps=1000, noise=0)
    assert name == "dforce/maze2d-umaze-noise0-v1"
    dataset = minari.load_dataset(name)
    assert dataset.recover_environment().spec.id == "dforce/maze2d-umaze-v1"
    assert dataset.observation_space.shape == (4,)
    assert dataset.storage.metadata["ref_max_score"] == pytest.approx(161.86)
