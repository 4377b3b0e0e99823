"""Other sources: D4RL's files, and mazes generated here."""

from __future__ import annotations

import numpy as np
import pytest

from dforce import data
from dforce.data import Windows
from tests.random_episodes import equal, ragged

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
    with h5py.File(tmp_path / "maze2d-umaze.hdf5", "w") as file:
        for key, shape in (("observations", (rows, 4)), ("actions", (rows, 2)), ("rewards", (rows,))):
            file[key] = rng.normal(size=shape).astype(np.float32)
        file["terminals"] = np.zeros(rows, bool)
        file["timeouts"] = np.isin(np.arange(rows), [9, 10, 19])
        o, a = file["observations"][()], file["actions"][()]
    with pytest.warns(UserWarning, match="maze2d, whose timeouts mark targets reached: nothing is cut"):
        whole = data.read_d4rl(tmp_path / "maze2d-umaze.hdf5")
    assert whole.lengths.tolist() == [24] and np.flatnonzero(whole.truncations).tolist() == [9, 10, 19]
    np.testing.assert_array_equal(whole.actions, a[:-1])
    pieces = data.read_d4rl(tmp_path / "maze2d-umaze.hdf5", max_length=10)
    assert pieces.lengths.tolist() == [10, 10, 4]
    np.testing.assert_array_equal(pieces.actions, a[:-1])  # no step is lost, boundary observations are shared
    np.testing.assert_array_equal(pieces.episode(1)[0], o[10:21])
    cut = data.read_d4rl(tmp_path / "maze2d-umaze.hdf5", cut_at=["terminals", "timeouts"])
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


def test_a_maze_of_ones_own_becomes_a_dataset(tmp_path):
    name = data.make_maze_dataset("#####/#OOG#/#####", steps=1000, root=tmp_path)
    episodes = data.load_episodes(name, root=tmp_path)
    assert episodes.about["rows"] == ["#####", "#OOG#", "#####"] and episodes.steps == 1000
    with pytest.raises(ValueError, match="made otherwise"):  # another maze under the same name
        data.make_maze_dataset("####/#OG#/####", steps=1000, root=tmp_path)
