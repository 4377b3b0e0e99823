"""Arrays of Minari files: infos stand beside the action they were taken with, and what is no number is named."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dforce import data

h5py, minari = pytest.importorskip("h5py"), pytest.importorskip("minari")
STEPS = (10, 7)


@pytest.fixture
def stored(tmp_path):
    """A data set of two episodes, whose info "time" is the number of the step; and its file."""
    episodes = data.pack([np.zeros((n + 1, 3)) for n in STEPS], [np.zeros((n, 2)) for n in STEPS],
                         [np.arange(float(n)) for n in STEPS], infos={"time": [np.arange(n) for n in STEPS]})
    folder = data.save_episodes("test/infos-v0", episodes, root=tmp_path)
    (folder / "checksums.json").unlink()
    return tmp_path, folder / "data" / "main_data.hdf5"


def replace(file, key: str, value) -> None:
    with h5py.File(file, "a") as opened:
        del opened[key]
        opened[key] = value


def test_infos_with_a_row_for_each_observation_are_aligned_and_others_refused(stored):
    root, file = stored
    assert data.load_episodes("test/infos-v0", infos=["time"], root=root).infos["time"].tolist() == [*range(10),
                                                                                                     *range(7)]
    for rows in (10, 12, 1):  # 10: those that step() returned, without the one of reset()
        replace(file, "episode_0/infos/time", np.arange(rows))
        with pytest.raises(ValueError, match=rf"info 'time' of episode 0 of .*infos-v0 has {rows} rows for 10 steps"):
            data.load_episodes("test/infos-v0", infos=["time"], root=root)
        data.load_episodes("test/infos-v0", root=root)  # they are not asked for
    replace(file, "episode_0/infos/time", np.array([b"x"] * 11))
    with pytest.raises(ValueError, match="info 'time' of episode 0 .*byte strings"):
        data.load_episodes("test/infos-v0", infos=["time"], root=root)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "{}", '{"observation_space": "3", "action_space": "{}"}',
                                  '{"observation_space": "{\\"type\\": \\"Box\\"}", "action_space": "{}"}'])
def test_metadata_that_describe_nothing_are_named(stored, text):
    root, file = stored
    (file.parent / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match="metadata.json"):
        data.load_episodes("test/infos-v0", root=root)


@pytest.mark.parametrize("key,value,message", [
    ("observations", np.zeros((11, 3), complex), "complex128"), ("observations", np.zeros((11, 4)), r"\(4,\)"),
    ("observations", np.zeros((10, 3)), "10 observations and 10 actions"), ("actions", np.zeros((10, 2), bool), "bool"),
    ("actions", np.zeros((9, 2)), "11 observations and 9 actions"), ("actions", np.array([b"ab"] * 10), "S2"),
    ("rewards", np.zeros(9), "rewards of .* 9 rows"), ("rewards", np.zeros(11), "rewards of .* 11 rows"),
    ("rewards", np.zeros(10, bool), "rewards of .* boolean"), ("rewards", np.zeros((10, 2)), "rewards of .* shape"),
    ("terminations", np.full(10, 3), "terminations of .* only 0 and 1"),
    ("truncations", np.array([b"x"] * 10, h5py.string_dtype()), "truncations of .* object")])
def test_arrays_that_do_not_fit_are_named_with_their_episode(stored, key, value, message):
    root, file = stored
    replace(file, f"episode_0/{key}", value)
    with pytest.raises(ValueError, match="episode 0 of .*infos-v0") as error:
        data.load_episodes("test/infos-v0", root=root)
    assert re.search(message, str(error.value)), error.value
