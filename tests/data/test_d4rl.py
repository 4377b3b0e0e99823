"""D4RL files: where episodes end, and what is said of arrays that are not what they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dforce import data
from dforce.data import Windows

h5py = pytest.importorskip("h5py")
LENGTHS, ROWS = (100, 60, 80, 100, 40), 380


def arrays(width: tuple[int, int] = (11, 3)) -> dict[str, np.ndarray]:
    """Five trajectories, the first and fourth ended by timeouts; column 0 tells the trajectory, column 1 the time."""
    rng, last = np.random.default_rng(0), np.cumsum(LENGTHS) - 1
    observations = rng.normal(size=(ROWS, width[0])).astype(np.float32)
    observations[:, 0] = np.repeat(np.arange(5), LENGTHS)
    observations[:, 1] = np.concatenate([np.arange(length) for length in LENGTHS])
    flags = np.zeros((2, ROWS), bool)
    flags[0, last[[1, 2, 4]]] = True
    flags[1, last[[0, 3]]] = True
    return {"observations": observations, "actions": rng.normal(size=(ROWS, width[1])).astype(np.float32),
            "rewards": rng.normal(size=ROWS).astype(np.float32), "terminals": flags[0], "timeouts": flags[1]}


def write(path, content: dict) -> None:
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            file[key] = value


def after(content: dict) -> np.ndarray:
    """next_observations: the next row, or at an end the same trajectory one step later."""
    following = np.roll(content["observations"], -1, axis=0)
    last = np.cumsum(LENGTHS) - 1
    following[last] = content["observations"][last] + [0, 1, *[0.25] * (following.shape[1] - 2)]
    return following


@pytest.mark.parametrize("width", [(11, 3), (4, 2)])
def test_episodes_end_at_terminals_and_timeouts_and_no_window_jumps(tmp_path, width):
    content = arrays(width)
    write(tmp_path / "hopper.hdf5", content)
    episodes = data.load_episodes(tmp_path / "hopper.hdf5")
    assert (episodes.lengths + 1).tolist() == list(LENGTHS)
    np.testing.assert_array_equal(episodes.observations, content["observations"])  # no row is lost
    windows = Windows(episodes, horizon=20, stack=1, held_out=0)
    batch = windows.gather(torch.arange(len(windows)))
    x = batch.x * windows.normalizer.std + windows.normalizer.mean
    assert len(windows) == sum(length - 20 for length in LENGTHS)
    assert (x[..., width[1]].std(1) < 1e-4).all() and (x[..., width[1] + 1].diff(dim=1) - 1).abs().max() < 1e-3
    assert (data.read_d4rl(tmp_path / "hopper.hdf5", cut_at=["timeouts"]).lengths + 1).tolist() == [100, 240, 40]


def test_the_state_after_the_last_step_is_taken_where_the_file_has_it(tmp_path):
    content = arrays()
    content["next_observations"] = after(content)
    write(tmp_path / "hopper.hdf5", content)
    episodes = data.load_episodes(tmp_path / "hopper.hdf5")
    assert episodes.lengths.tolist() == list(LENGTHS)
    for key, array in (("actions", episodes.actions), ("rewards", episodes.rewards),
                       ("terminals", episodes.terminations), ("timeouts", episodes.truncations)):
        np.testing.assert_array_equal(array, content[key])
    for e, last in enumerate(np.cumsum(LENGTHS) - 1):
        observations, *_ = episodes.episode(e)
        np.testing.assert_array_equal(observations[-1], content["next_observations"][last])
        np.testing.assert_array_equal(observations[:-1], content["observations"][last + 1 - LENGTHS[e] : last + 1])
    pieces = data.read_d4rl(tmp_path / "hopper.hdf5", max_length=50)
    assert pieces.lengths.tolist() == [50, 50, 50, 10, 50, 30, 50, 50, 40]
    np.testing.assert_array_equal(pieces.actions, content["actions"])
    np.testing.assert_array_equal(pieces.episode(4)[0], content["observations"][160:211])
    content["timeouts"][:] = False
    write(tmp_path / "unmarked.hdf5", content)  # the flags are not there, the jumps are
    with pytest.warns(UserWarning, match="unmarked.hdf5: 2 rows without a flag have a next observation that is not"):
        assert data.read_d4rl(tmp_path / "unmarked.hdf5").lengths.tolist() == list(LENGTHS)


def test_a_single_trajectory_of_any_width_comes_back_whole(tmp_path):
    episodes = data.pack([np.random.default_rng(0).normal(size=(31, 17))], [np.ones((30, 6))], [np.zeros(30)])
    data.write_d4rl(tmp_path / "one.hdf5", episodes)
    np.testing.assert_array_equal(data.load_episodes(tmp_path / "one.hdf5").observations, episodes.observations)


def test_a_file_without_timeouts_and_infos_that_are_not_there_are_told(tmp_path):
    content = arrays()
    del content["timeouts"]
    write(tmp_path / "v0.hdf5", content)
    with pytest.warns(UserWarning, match="v0.hdf5 has no timeouts"):
        data.load_episodes(tmp_path / "v0.hdf5")
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="v0.hdf5 has no infos goal"):
        data.load_episodes(tmp_path / "v0.hdf5", infos=["goal"])
    with pytest.raises(ValueError, match="cut_at is a list of flags"):
        data.load_episodes(tmp_path / "v0.hdf5", cut_at=["ends"])


BAD = {
    "objects": lambda v: np.array([b"x"] * len(v), h5py.string_dtype()),
    "strings": lambda v: np.full(v.shape, b"1.0", "S3"),
    "complex": lambda v: v.astype(complex),
    "boolean": lambda v: v > 0,
    "short": lambda v: v[:-1],
    "long": lambda v: np.concatenate([v, v[-1:]]),
    "scalar": lambda v: np.float32(1),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("key", ["observations", "actions", "rewards", "terminals", "timeouts", "next_observations"])
def test_every_array_that_is_not_what_it_should_be_is_named_with_its_file(tmp_path, kind, key):
    content = arrays()
    content["next_observations"] = after(content)
    content[key] = BAD[kind](content[key])
    write(tmp_path / "bad.hdf5", content)
    if kind == "boolean" and key in ("terminals", "timeouts"):
        assert len(data.load_episodes(tmp_path / "bad.hdf5")) == 5
        return
    named = "actions" if key == "observations" and kind in ("short", "long") else key  # the others differ from them
    with pytest.raises(ValueError, match=rf"bad.hdf5: {named} "):
        data.load_episodes(tmp_path / "bad.hdf5")


def test_flags_that_are_no_flags_and_vectors_that_are_no_vectors_are_named(tmp_path):
    for key, value in (("timeouts", np.full(ROWS, 2)), ("terminals", np.full(ROWS, np.nan)),
                       ("rewards", np.zeros((ROWS, 2))), ("actions", np.zeros((ROWS, 0))),
                       ("observations", np.zeros((ROWS, 2, 2)))):
        write(tmp_path / "bad.hdf5", {**arrays(), key: value})
        with pytest.raises(ValueError, match=f"bad.hdf5: {key} "):
            data.load_episodes(tmp_path / "bad.hdf5")
