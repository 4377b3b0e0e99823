"""What is written for clips is sealed: a byte that is changed anywhere is reported, or changes nothing."""

from __future__ import annotations

import os
import shutil
import time
import warnings

import numpy as np
import pytest

from dforce.data import VideoClips
from dforce.data.generate.video import bouncing_balls
from dforce.data.images import load_images
from dforce.data.seal import SETTLED
from dforce.data.video.index import find_clips


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))


def flips(path, count: int, seed: int = 0):
    """A file with one byte changed, `count` times over, with its times set back; it is whole again at the end."""
    whole, status = path.read_bytes(), path.stat()
    for place in np.random.default_rng(seed).integers(0, len(whole), count):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(place) % 8
        path.write_bytes(damaged)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        yield int(place)
    path.write_bytes(whole)


@pytest.fixture
def balls(tmp_path):
    list(bouncing_balls(tmp_path / "balls", clips=4, test_clips=1, frames=6, size=8))
    time.sleep(2 * SETTLED)
    return tmp_path / "balls"


def pixels(root, **options) -> np.ndarray:
    """All frames of all clips, in order."""
    clips = VideoClips(root, frames=6, **options)
    return clips.sequence(range(len(clips.clips))).x.numpy()


def test_every_changed_byte_of_clips_is_reported_by_the_name_of_their_file(balls):
    before = pixels(balls)
    np.testing.assert_array_equal(pixels(balls), before)  # from the memory of digests
    for file in ("clip_0002.npz", "clip_0000.npz"):
        for _ in flips(balls / "train" / "shard_0000" / file, 12):
            with pytest.raises(ValueError, match=f"{file} is damaged: its sha256"):
                pixels(balls)
    for _ in flips(balls / "train" / "shard_0000" / "checksums.json", 24):
        try:
            np.testing.assert_array_equal(pixels(balls), before)
        except ValueError as error:
            assert "shard_0000" in str(error)
    os.unlink(balls / "train" / "shard_0000" / "clip_0001.npz")
    with pytest.raises(ValueError, match="clip_0001.npz is missing"):
        pixels(balls)


def test_whatever_is_wrong_with_cache_and_index_they_are_made_anew(balls, tmp_path):
    before = pixels(balls)
    np.testing.assert_array_equal(pixels(balls, cache=True), before)
    time.sleep(2 * SETTLED)
    np.testing.assert_array_equal(pixels(balls, cache=True), before)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert {path.parent.name for path in kept} >= {"clips", "digests"} and any(p.name == "frames.u8" for p in kept)
    for path in kept:
        for _ in flips(path, 6):
            np.testing.assert_array_equal(pixels(balls, cache=True), before)
    (place,) = {path.parent for path in kept if path.name == "frames.u8"}
    for content in (b"", b"[]", b"null", b"{}", b"[" * 100_000):
        (place / "index.json").write_bytes(content)
        np.testing.assert_array_equal(pixels(balls, cache=True), before)
    (place / "frames.u8").unlink()
    np.testing.assert_array_equal(pixels(balls, cache=True), before)
    shutil.rmtree(place)
    place.write_text("no folder")
    np.testing.assert_array_equal(pixels(balls, cache=True), before)


def test_a_frame_that_is_replaced_in_its_folder_is_decoded_again(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "set" / "a").mkdir(parents=True)
    for t in range(6):
        image.fromarray(np.full((8, 8, 3), 40 * t, np.uint8)).save(tmp_path / "set" / "a" / f"{t}.png")
    first = pixels(tmp_path / "set", held_out=0, cache=True)
    image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(tmp_path / "set" / "a" / "0.png")
    again = pixels(tmp_path / "set", held_out=0, cache=True)
    assert (again[0, 0] == 1).all() and (again[0, 1:] == first[0, 1:]).all()


def test_links_do_not_lead_out_of_a_folder(tmp_path):
    image = pytest.importorskip("PIL.Image")
    outside, inside = tmp_path / "outside", tmp_path / "set"
    for folder in (outside / "frames", inside / "a", inside / "b", inside / "c"):
        folder.mkdir(parents=True)
    for t in range(3):
        for folder in (outside / "frames", inside / "a", inside / "b"):
            image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(folder / f"{t}.png")
    np.savez(outside / "clip.npz", video=np.zeros((3, 8, 8, 3), np.uint8))
    (inside / "linked").symlink_to(outside / "frames")
    (inside / "clip.npz").symlink_to(outside / "clip.npz")
    (inside / "b" / "3.png").symlink_to(outside / "frames" / "0.png")
    (inside / "c" / "again").symlink_to(inside)  # a circle
    (inside / "twice").symlink_to(inside / "a")
    clips = find_clips(inside)
    assert [clip.name for clip in clips.clips] in (["a"], ["twice"])
    assert set(clips.skipped) == {"linked", "clip.npz", "b/3.png"}
    assert all("a link out of the folder is not followed" in reason for reason in clips.skipped.values())
    (tmp_path / "alias").symlink_to(inside)  # the folder that is named may be a link itself
    assert len(find_clips(tmp_path / "alias").clips) == 1
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        for name in ("twice", "c/again", "c"):
            (inside / name).unlink() if (inside / name).is_symlink() else (inside / name).rmdir()
        images = load_images(inside, split="all")
    assert images.classes == ("a", "b") and len(images.x) == 6
    assert {str(m.message).split(":")[0].split("/")[-1] for m in messages} == {"linked", "3.png"}
