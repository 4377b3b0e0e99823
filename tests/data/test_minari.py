"""Data on disk: what is read is what was written, and what was changed in between is named."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch

from dforce import data
from dforce.data import Windows, store
from dforce.data import minari as trajectories
from tests.random_episodes import equal, ragged

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
    direct = trajectories._raw_episodes(tmp_path / "dforce/random-v1/data", {"data_format": "other",
                                                                             "total_episodes": 5})
    for e, raw in enumerate(direct):
        np.testing.assert_array_equal(raw["actions"], episodes.episode(e)[1])


def _plain_minari(name, env, *, seed=0):
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


def test_dict_observations_are_joined_and_what_is_no_vector_is_refused(tmp_path, monkeypatch):
    import gymnasium
    from gymnasium import spaces

    class Goal(gymnasium.Env):
        action_space = spaces.Box(-1, 1, (2,))
        observation_space = spaces.Dict({"observation": spaces.Box(-9, 9, (3,)), "desired_goal": spaces.Box(-9, 9,
                                                                                                            (2,))})

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
    assert data.columns.column_names(spaces.Box(0, 255, (64, 64, 3), np.uint8), "observation") == []  # pictures
    with pytest.raises(ValueError, match="vectors are read here"):
        data.columns.column_names(spaces.Box(0, 255, (64, 64, 4), np.uint8), "observation")


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
