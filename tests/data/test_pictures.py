"""Pictures and films as a viewer shows them: shades by the range of the file's numbers, turned, cut and squared."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from dforce.data import VideoClips
from dforce.data.images import load_images
from dforce.data.pixels import PictureError, read_picture
from dforce.data.video.index import find_clips
from tests.data.test_video_files import film, stripes, told

Image = pytest.importorskip("PIL.Image")
ORIENTATION = 0x0112  # EXIF


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))


def both(root: Path, picture, name: str, **options) -> tuple[np.ndarray, np.ndarray]:
    """[H, W, C] in 0..255 of one picture, read as the image of a class and as the frame of a clip."""
    (root / "class").mkdir(parents=True)
    picture.save(root / "class" / name, **options)
    image = load_images(root, split="all").x[0, 0].permute(1, 2, 0).numpy()
    frame = VideoClips(root, frames=1, held_out=0).batch_at(0).x[0, 0].permute(1, 2, 0).numpy()
    return (image + 1) * 127.5, (frame + 1) * 127.5


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_scaled_by_their_range(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / f"ramp{suffix}")
    assert read_picture(tmp_path / f"ramp{suffix}")[..., 0].ravel().tolist() == list(range(256))
    middle = Image.fromarray(np.full((4, 4), 32768, np.uint16))
    if suffix == ".png":
        for shades in both(tmp_path / "both", middle, "a.png"):
            assert shades.shape == (4, 4, 1) and np.abs(shades - 128).max() < 1e-3
    else:
        middle.save(tmp_path / "white_is_zero.tif", tiffinfo={262: 0})
        assert (read_picture(tmp_path / "white_is_zero.tif") == 127).all()


@pytest.mark.parametrize("numbers", [np.full((4, 4), 100_000, np.int32), np.full((4, 4), 0.5, np.float32)])
def test_numbers_without_a_stated_range_are_refused_by_name(tmp_path, numbers):
    (tmp_path / "class").mkdir()
    Image.fromarray(numbers).save(tmp_path / "class" / "a.tif")
    with pytest.raises(PictureError, match="nothing says which number is white: save it with 8 or 16 bits"):
        read_picture(tmp_path / "class" / "a.tif")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "class" / "b.png")
    with pytest.warns(UserWarning, match=r"passed over .*a.tif: its pixels are"):
        assert len(load_images(tmp_path, split="all").x) == 1


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_that_exif_states_is_applied(tmp_path, tag):
    stored = np.random.default_rng(0).integers(0, 256, (4, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    shown = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.swapaxes(0, 1),
             6: np.rot90(stored, -1), 7: stored[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(stored)}[tag]
    for shades in both(tmp_path, Image.fromarray(stored), "a.png", exif=exif):
        np.testing.assert_allclose(shades, shown, atol=1e-3)


def test_a_picture_that_unpacks_to_a_bomb_is_named(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PictureError, match="decompression bomb"):
        read_picture(tmp_path / "a.png")


def test_a_film_cut_by_stream_copy_has_the_frames_that_a_player_shows(tmp_path):
    av = pytest.importorskip("av")
    whole = film(tmp_path / "whole.mp4", stripes(30))
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w",
                                                options={"avoid_negative_ts": "disabled"}) as cut:
        stream = source.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts -= int(0.7 / stream.time_base)
                packet.dts -= int(0.7 / stream.time_base)
                packet.stream = copy
                cut.mux(packet)
    (clip,) = find_clips(tmp_path / "cut.mp4").clips
    assert told(clip.read(np.arange(clip.frames))) == list(range(7, 30))
    assert told(clip.read(np.arange(10, 13))) == [17, 18, 19]


@pytest.mark.parametrize("degrees,mirrored", [(0, False), (90, False), (180, False), (-90, False), (0, True),
                                              (90, True)])
def test_films_are_turned_as_their_display_matrix_says(tmp_path, degrees, mirrored):
    av = pytest.importorskip("av")
    corner = np.zeros((16, 32, 3), np.uint8)
    corner[:8, :16] = 220
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no display matrix")
        stream.set_display_rotation(degrees, hflip=mirrored)
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
        out.mux(stream.encode())
    (clip,) = find_clips(tmp_path / "a.mp4").clips
    turned = np.rot90(corner, degrees // 90)
    shown = turned[:, ::-1] if mirrored else turned
    assert (clip.height, clip.width) == shown.shape[:2]
    np.testing.assert_array_equal(clip.read(np.arange(3))[1] > 128, shown > 128)


def test_pixels_of_a_film_that_are_not_square_become_square(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for frame in stripes(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    (clip,) = find_clips(tmp_path / "a.mp4").clips
    assert (clip.height, clip.width) == (32, 64) and told(clip.read(np.arange(5))) == list(range(5))
