"""Pictures of cameras in episodes: read from the file when they are asked for, equal to what was written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dforce import data
from dforce.data import Windows, minari_pictures
from dforce.data.episodes import pack
from tests.random_episodes import equal, ragged

RNG = np.random.default_rng(0)


def seen(lengths=(5, 3), cameras=("front", "top"), size=(6, 8)):
    """Random pictures, one array an episode."""
    return {name: [RNG.integers(0, 256, (n + 1, *size, 3), dtype=np.uint8) for n in lengths] for name in cameras}


def filmed(width=2, lengths=(5, 3), images=None):
    episodes = ragged(lengths, width=(max(width, 2), 2))
    images = {name: np.concatenate(each) for name, each in (images or seen(lengths)).items()}
    return replace(episodes, observations=episodes.observations[:, :width], images=images)


@pytest.mark.parametrize("width", [2, 0])
def test_what_cameras_saw_comes_back_as_it_was_written(tmp_path, width):
    episodes = filmed(width)
    data.save_episodes("dforce/filmed-v1", episodes, root=tmp_path)
    read = data.load_episodes("dforce/filmed-v1", root=tmp_path)
    if width:
        equal(read, episodes, infos=())
    assert read.observations.shape == (10, width) and list(read.images) == ["front", "top"]
    for name, pictures in read.images.items():
        assert pictures.shape == (10, 6, 8, 3) and len(pictures) == 10
        rows = np.array([9, 0, 6, 5, 6])  # of both episodes, in any order, twice
        np.testing.assert_array_equal(pictures[rows], episodes.images[name][rows])
        np.testing.assert_array_equal(pictures[2:8], episodes.images[name][2:8])
        np.testing.assert_array_equal(pictures[7], episodes.images[name][7])


def test_pictures_are_not_read_before_they_are_asked_for(tmp_path, monkeypatch):
    episodes = filmed()
    data.save_episodes("dforce/filmed-v1", episodes, root=tmp_path)
    read, index = [], minari_pictures.Camera.read
    monkeypatch.setattr(minari_pictures.Camera, "read", lambda camera, e, rows: read.append(len(rows)) or index(
        camera, e, rows))
    pictures = data.load_episodes("dforce/filmed-v1", root=tmp_path).images["top"]
    assert not read
    assert pictures[np.array([8])].shape == (1, 6, 8, 3) and read == [1]


def test_grey_and_channels_first_pictures_become_rgb(tmp_path):
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    for number, (shape, axis) in enumerate((((6, 8, 1), None), ((3, 6, 8), 1))):
        frames = RNG.integers(0, 256, (4, *shape), dtype=np.uint8)
        buffer = EpisodeBuffer(id=0, observations=frames, actions=np.zeros((3, 1), np.float32), rewards=np.zeros(3),
                               terminations=np.zeros(3, bool), truncations=np.arange(3) == 2)
        data.minari.save_buffers(f"dforce/alone-v{number}", [buffer], env=None, about={}, root=tmp_path,
                                 observation_space=gymnasium.spaces.Box(0, 255, shape, np.uint8),
                                 action_space=gymnasium.spaces.Box(-1, 1, (1,)))
        read = data.load_episodes(f"dforce/alone-v{number}", root=tmp_path)
        wanted = frames.repeat(3, -1) if axis is None else np.moveaxis(frames, axis, -1)
        np.testing.assert_array_equal(read.images["observation"][np.arange(4)], wanted)
        assert read.observations.shape == (4, 0)


def test_pack_takes_pictures_by_episode_or_all_of_them():
    lengths, pictures = (5, 3), seen()
    o, a, r = ([np.zeros((n + extra, 1)) for n in lengths] for extra in (1, 0, 0))
    by_episode = pack(o, a, [each[:, 0] for each in r], images=pictures)
    whole = pack(o, a, [each[:, 0] for each in r], images={k: np.concatenate(v) for k, v in pictures.items()})
    np.testing.assert_array_equal(by_episode.images["top"], whole.images["top"])


@pytest.mark.parametrize("wrong, message", [
    (lambda x: x.astype(np.float32), "images of 'front' are float32 of shape .*wanted are uint8"),
    (lambda x: x[..., :1], "wanted are uint8"), (lambda x: x[:-1], "front has 9 rows"), (list, "are list of shape")])
def test_pictures_that_cannot_be_are_named(wrong, message):
    episodes = filmed()
    with pytest.raises(ValueError, match=message):
        replace(episodes, images={"front": wrong(episodes.images["front"])})


def test_a_camera_that_an_episode_lacks_is_named_and_plans_take_none(tmp_path):
    import h5py

    folder = data.save_episodes("dforce/filmed-v1", filmed(), root=tmp_path)
    with pytest.raises(ValueError, match="pictures of front, top"):
        Windows(data.load_episodes(folder), horizon=2)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/observations/top"]
    (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match=r"episode 1 of .* does not fit the dataset's spaces: it has no top"):
        data.load_episodes(folder)
    with pytest.raises(ValueError, match="observations need|need observations"):
        replace(filmed(0), images={})
