"""Cameras of LeRobot data: every frame is the one of its episode, time and camera, whichever film it lies in."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dforce.data import Episodes, VideoClips, load_episodes
from dforce.data.pixels import to_uint8
from dforce.data.robot_formats.lerobot_writer import write_lerobot
from tests.data.test_lerobot import FPS, LENGTHS, by_hand_v2, by_hand_v3, edit, features, relist
from tests.random_episodes import equal, ragged
from tests.spoiled import refused_in_one_line

SIDE = 32
CAMERAS = {"top": 0, "wrist": 120}  # and how much blue its pictures have


def picture(e: int, t: int, blue: int) -> np.ndarray:
    """A picture whose colour tells the episode, the frame and the camera."""
    return np.broadcast_to(np.array([30 + 40 * e, 20 + 20 * t, blue], np.uint8), (SIDE, SIDE, 3))


def told(frames: np.ndarray) -> np.ndarray:
    """Episode, frame and camera that the middle of each picture tells, [n, 3]."""
    red, green, blue = np.moveaxis(frames[:, SIDE // 4:-SIDE // 4, SIDE // 4:-SIDE // 4].mean((1, 2)), 1, 0)
    return np.stack([(red - 30) / 40, (green - 20) / 20, blue / 120], 1).round().astype(int)


def film(path: Path, episodes: list[int], blue: int, *, fps: int = FPS, codec: str = "libx264") -> None:
    """Episodes one after another in an mp4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options={"crf": "10", "g": "2"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        number = 0
        for e in episodes:
            for t in range(LENGTHS[e]):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture(e, t, blue)), format="rgb24")
                frame.pts, number = number, number + 1
                container.mux(stream.encode(frame))
        container.mux(stream.encode())


def camera(root: Path, name: str, dtype: str = "video") -> None:
    features(root, f"observation.images.{name}", dtype=dtype, shape=[SIDE, SIDE, 3],
             names=["height", "width", "channels"])


def filmed_v3(root: Path, codec: str = "libx264") -> Path:
    """Two cameras; of one, the episodes 0 and 1 share a film and so do 2 and 3, of the other 0 to 3."""
    by_hand_v3(root)
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for name, files in {"top": [[0, 1], [2, 3]], "wrist": [[0, 1, 2, 3]]}.items():
        camera(root, name)
        for file, episodes in enumerate(files):
            film(root / f"videos/observation.images.{name}/chunk-000/file-{file:03d}.mp4", episodes, CAMERAS[name],
                 codec=codec)
            begin = 0.
            for e in episodes:
                rows[e] |= {f"videos/observation.images.{name}/{key}": value for key, value in {
                    "chunk_index": 0, "file_index": file, "from_timestamp": begin,
                    "to_timestamp": begin + LENGTHS[e] / FPS}.items()}
                begin += LENGTHS[e] / FPS
    pq.write_table(pa.Table.from_pylist(rows), path)
    edit(root, video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")
    return root


def filmed_v2(root: Path) -> Path:
    by_hand_v2(root)
    for name, blue in CAMERAS.items():
        camera(root, name)
        for e in range(len(LENGTHS)):
            film(root / f"videos/chunk-{e // 2:03d}/observation.images.{name}/episode_{e:06d}.mp4", [e], blue)
    edit(root, video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4")
    return root


def pictured_v3(root: Path) -> Path:
    """Pictures as PNG in the parquet files."""
    by_hand_v3(root)
    for name, blue in CAMERAS.items():
        camera(root, name, "image")
        for file, episodes in enumerate(([0, 1, 2], [3])):
            stored, frames = [], [(e, t) for e in episodes for t in range(LENGTHS[e])]
            for e, t in frames:
                content = io.BytesIO()
                Image.fromarray(picture(e, t, blue)).save(content, "PNG")
                stored.append({"bytes": content.getvalue(), "path": f"frame_{t:06d}.png"})
            path = root / f"data/chunk-000/file-{file:03d}.parquet"
            table = pq.read_table(path).append_column(f"observation.images.{name}", pa.array(stored))
            pq.write_table(table, path, row_group_size=4)  # groups that end within episodes
    return root


def wanted(blue: int) -> np.ndarray:
    """What the pictures of a camera tell, a row an observation; the last one twice."""
    return np.array([[e, min(t, n - 1), blue // 120] for e, n in enumerate(LENGTHS) for t in range(n + 1)])


@pytest.mark.parametrize("make", [filmed_v3, filmed_v2, pictured_v3])
def test_each_picture_is_of_its_episode_time_and_camera(tmp_path, make):
    episodes = load_episodes(make(tmp_path / "set"))
    assert list(episodes.images) == ["top", "wrist"]
    for name, blue in CAMERAS.items():
        images, rows = episodes.images[name], np.random.default_rng(0).permutation(sum(LENGTHS) + len(LENGTHS))
        assert images.shape == (len(rows), SIDE, SIDE, 3) and images.dtype == np.uint8
        np.testing.assert_array_equal(told(images[:]), wanted(blue))
        np.testing.assert_array_equal(told(images[rows]), wanted(blue)[rows])
    split = load_episodes(tmp_path / "set", subset="test")
    np.testing.assert_array_equal(told(split.images["top"][:]), wanted(0)[-LENGTHS[3] - 1:])


def test_films_in_av1_as_lerobot_writes_them_are_read(tmp_path):
    episodes = load_episodes(filmed_v3(tmp_path / "set", codec="libsvtav1"))
    np.testing.assert_array_equal(told(episodes.images["top"][:]), wanted(0))


def seen(episodes: Episodes, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Smooth pictures of two cameras, of which no two are equal."""
    rows, high, wide = np.meshgrid(np.arange(len(episodes.observations)), *map(np.arange, size), indexing="ij")
    return {name: np.stack([wide * 4 + rows, high * 4 + shift, rows + shift], -1).astype(np.uint8)
            for name, shift in CAMERAS.items()}


@pytest.mark.parametrize(("pictures", "size"), [("lossless", (24, 32)), ("lossless", (15, 17)), ("lossy", (24, 32)),
                                                ("lossy", (15, 17))])
def test_pictures_that_were_written_are_read_back(tmp_path, pictures, size):
    lengths = (5, 3, 8)
    plain = ragged(lengths)
    episodes = replace(plain, images=seen(plain, size))
    root = write_lerobot(tmp_path / "set", episodes, pictures=pictures, file_mb=0.002)
    assert len(list(root.glob("videos/observation.images.top/chunk-000/*.mp4"))) > 1 or pictures == "lossy"
    back = load_episodes(root, infos=("goal",))
    equal(episodes, back)
    for name, images in episodes.images.items():
        off = np.abs(back.images[name][:].astype(int) - images)
        assert off.max() == 0 if pictures == "lossless" else off.mean() < 3 and off.max() < 40
    stats = json.loads((root / "meta/stats.json").read_text())["observation.images.top"]
    count = stats.pop("count")
    assert count == [sum(lengths) + 3] and all(np.shape(value) == (3, 1, 1) for value in stats.values())
    np.testing.assert_allclose(np.ravel(stats["mean"]), (episodes.images["top"] / 255).mean((0, 1, 2)), rtol=1e-9)


def truncate(root: Path) -> None:
    path = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    path.write_bytes(path.read_bytes()[:600])


def shorten(root: Path) -> None:
    film(root / "videos/observation.images.wrist/chunk-000/file-000.mp4", [0, 1, 2], 120)


WRIST = "videos/observation.images.wrist"
BAD = {
    "no video": (lambda r: (r / WRIST / "chunk-000/file-000.mp4").unlink(), "is missing, the video of observation"),
    "truncated video": (truncate, r"file-000.mp4: it cannot be opened \(.*\); restore it"),
    "a film that ends too soon": (shorten, "has 18 frames, episode 3 needs 18 to 22"),
    "another pace": (lambda r: film(r / WRIST / "chunk-000/file-000.mp4", [0, 1, 2, 3], 120, fps=15),
                     "has 15 frames a second, meta/info.json says 30"),
    "between frames": (lambda r: relist(r, **{f"{WRIST}/from_timestamp": 0.25}), "episode 1 begins at 0.25 s, which"),
    "behind the end": (lambda r: relist(r, **{f"{WRIST}/from_timestamp": 9.}), "has 23 frames, episode 1 needs 270"),
    "no film listed": (lambda r: relist(r, **{f"{WRIST}/file_index": 3}), "file-003.mp4 is missing"),
    "a missing camera": (lambda r: camera(r, "third"), "take the camera observation.images.third out of features"),
    "a path that leads out": (lambda r: edit(r, video_path="../{video_key}.mp4"), "leads out of the data set"),
    "no path": (lambda r: edit(r, video_path=None), "info.json cannot be read|is missing"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_films_get_one_clear_line(tmp_path, name):
    root = filmed_v3(tmp_path / "set")
    spoil, message = BAD[name]
    spoil(root)
    with refused_in_one_line(root, message):
        load_episodes(root).images["wrist"][:]


def test_a_picture_file_that_is_none_is_named(tmp_path):
    root = pictured_v3(tmp_path / "set")
    path = root / "data/chunk-000/file-001.parquet"
    table, key = pq.read_table(path), "observation.images.top"
    stored = table.column(key).to_pylist()
    stored[2]["bytes"] = stored[2]["bytes"][:40]
    stored[3]["bytes"] = None
    pq.write_table(table.drop_columns([key]).append_column(key, pa.array(stored)), path)
    images = load_episodes(root).images["top"]
    for row, message in ((23, "row 2 of observation.images.top cannot be read"), (24, "no picture file is stored")):
        with pytest.raises(ValueError, match=message):
            images[row]


def test_a_camera_without_its_column_is_named(tmp_path):
    camera(by_hand_v3(tmp_path / "set"), "top", "image")
    with pytest.raises(ValueError, match="file-000.parquet lacks the pictures of observation.images.top"):
        load_episodes(tmp_path / "set")


def test_maps_of_depth_are_left_out_and_said_so(tmp_path):
    root = filmed_v3(tmp_path / "set")
    features(root, "observation.images.depth", dtype="video", shape=[SIDE, SIDE, 1], info={"is_depth_map": True})
    with pytest.warns(UserWarning, match="observation.images.depth are left out"):
        assert list(load_episodes(root).images) == ["top", "wrist"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))


def test_clips_of_a_camera_are_its_episodes_and_no_window_crosses_into_another(tmp_path, cache):
    root = filmed_v3(tmp_path / "set")
    with pytest.warns(UserWarning, match="several cameras, top, wrist; top is taken, for another give .*videos"):
        clips = VideoClips(root, frames=3, held_out=0)
    assert [clip.frames for clip in clips.clips] == list(LENGTHS) and clips.layout["fps"] == pytest.approx(FPS)
    assert len(clips) == sum(n - 2 for n in LENGTHS)
    for camera, place in enumerate((root, root / "videos/observation.images.wrist")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clips = VideoClips(place, frames=3, held_out=0)
        batch = clips.gather(np.arange(len(clips)))
        mean, std = map(np.array, clips.layout["action_scale"])
        shown = told(to_uint8(batch.x.flatten(0, 1))).reshape(-1, 3, 3)
        assert (shown[..., 0] == shown[:, :1, 0]).all() and (shown[..., 2] == camera).all()
        assert (np.diff(shown[..., 1]) == 1).all()
        moved = batch.cond["token"]["action"][:, 1:].numpy()  # row t led to frame t
        np.testing.assert_allclose((moved * std + mean)[..., 0], shown[:, :-1, 1] / 8 + shown[:, :-1, 0], atol=1e-5)
    with pytest.raises(ValueError, match="none of its cameras, top, wrist"):
        VideoClips(root / "videos/observation.images.top/chunk-000", frames=3, held_out=0)


def test_what_was_written_is_read_back_as_clips(tmp_path, cache):
    plain = ragged((5, 3))
    episodes = replace(plain, images={"top": seen(plain, (24, 32))["top"]})
    clips = VideoClips(write_lerobot(tmp_path / "set", episodes), frames=2, held_out=0, size=(24, 32))
    assert [clip.frames for clip in clips.clips] == [6, 4]
    np.testing.assert_array_equal(clips.clips[1].read(np.arange(4)), episodes.images["top"][6:])
