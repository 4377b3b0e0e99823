"""Layouts and clips that do not go together are refused by name until they are read rightly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dforce.data import VideoClips, load_episodes
from tests.data.test_video_files import film, stripes, told


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def test_parts_of_lerobot_data_are_refused_by_name(tmp_path):
    root = tmp_path / "pusht"
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1", "fps": 10}))
    film(root / "videos" / "chunk-000" / "top" / "episode_000000.mp4", stripes(12))
    (root / "data").mkdir()
    (root / "data" / "a.parquet").write_bytes(b"PAR1")
    for place in (root, root / "videos", root / "videos" / "chunk-000" / "top" / "episode_000000.mp4", tmp_path):
        with pytest.raises(ValueError, match="pusht.*info.json cannot be read|of the LeRobot data set .*pusht"):
            VideoClips(place, frames=4, held_out=0)
    for place in (tmp_path, root / "data", root / "data" / "a.parquet"):
        with pytest.raises(ValueError, match="of the LeRobot data set .*pusht"):
            load_episodes(place)
    (root / "meta" / "info.json").write_text("{")  # another folder with files of that name is none
    assert len(VideoClips(root, frames=4, held_out=0).clips) == 1


def test_films_of_several_rates_are_refused_unless_one_is_given(tmp_path):
    for fps in (10, 30, 60):
        film(tmp_path / "mixed" / f"{fps}.mp4", stripes(24), fps=fps)
    with pytest.raises(ValueError, match=r"several frame rates .*: 10 \(1, 10.mp4\), 30 \(1, 30.mp4\), 60 .*give fps="):
        VideoClips(tmp_path / "mixed", frames=4, held_out=0)
    clips = VideoClips(tmp_path / "mixed", frames=4, held_out=0, fps=10)
    assert clips.layout["fps"] == 10 and [clip.frames for clip in clips.clips] == [24, 8, 4]
    frames = clips.clips[1].read(np.arange(8))
    assert told(frames) == [1, 4, 7, 10, 13, 16, 19, 22]  # every third, from the middle of a longer one
    with pytest.warns(UserWarning, match="2 of 3 films have fewer than fps=60 frames a second, the first is 10.mp4"):
        VideoClips(tmp_path / "mixed", frames=4, held_out=0, fps=60)
    film(tmp_path / "one" / "a.mp4", stripes(24), fps=30)
    assert VideoClips(tmp_path / "one", frames=4, held_out=0).layout["fps"] == pytest.approx(30)
    film(tmp_path / "near" / "a.mp4", stripes(24), fps=30)
    film(tmp_path / "near" / "b.mp4", stripes(24), fps=30000 / 1001)
    assert len(VideoClips(tmp_path / "near", frames=4, held_out=0).clips) == 2
