"""Which frames of a Minari data set are JPEG is what Minari says of them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from dforce.data import VideoClips

minari, gymnasium = pytest.importorskip("minari"), pytest.importorskip("gymnasium")


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


@pytest.mark.parametrize("shape,high,jpeg", [((16, 16, 3), 255, False), ((32, 32, 3), 255, True),
                                             ((3, 32, 32), 255, False), ((48, 16, 3), 255, False),
                                             ((32, 32, 3), 200, False)])
def test_frames_are_read_as_minari_stored_them(tmp_path, shape, high, jpeg):
    from minari.data_collector import EpisodeBuffer

    frames = np.broadcast_to(10 * np.arange(9, dtype=np.uint8).reshape(-1, 1, 1, 1), (9, *shape))  # 10 t
    buffers = [EpisodeBuffer(id=i, observations=frames, actions=np.arange(8) % 3, rewards=np.zeros(8),
                             terminations=np.zeros(8, bool), truncations=np.arange(8) == 7) for i in range(3)]
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        minari.create_dataset_from_buffers(  # jpeg_encoding=True is its default
            "test/shades-v0", buffers, observation_space=gymnasium.spaces.Box(0, high, shape, np.uint8),
            action_space=gymnasium.spaces.Discrete(3))
        clips = VideoClips("test/shades-v0", frames=9, held_out=0, batch=2)
        x = (clips.sequence([0, 1, 2]).x + 1) * 127.5
    assert len(clips.clips) == 3 and not clips.skipped
    assert any("keeps its frames as JPEG" in str(message.message) for message in messages) == jpeg
    assert (np.abs(x.flatten(2).numpy() - 10 * np.arange(9)[:, None]) <= 1.5 * jpeg + 1e-3).all()


def test_frames_that_are_not_of_their_space_are_named(tmp_path):
    import h5py

    test_frames_are_read_as_minari_stored_them(tmp_path, (16, 16, 3), 255, False)
    with h5py.File(tmp_path / "minari" / "test" / "shades-v0" / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1/observations"]
        file["episode_1/observations"] = np.zeros((9, 8, 8, 3), np.uint8)
    clips = VideoClips("test/shades-v0", frames=9, held_out=0, batch=2)
    with pytest.raises(ValueError, match=r"episode_1: its observations are uint8 \(8, 8, 3\), its space says"):
        clips.sequence([1])
