"""Clips of every layout, timed reads against whole decodes, and what is said of files that cannot be used."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dforce.data import VideoClips
from dforce.data.seal import SETTLED
from dforce.data.video.index import find_clips

iio = pytest.importorskip("imageio.v3")


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def stripes(frames: int = 40, size: int = 32, seed: int = 0) -> np.ndarray:
    """A film whose frame t tells t in 6 grey bars, one a bit, so that it survives lossy coding."""
    video = np.zeros((frames, size, size, 3), np.uint8)
    width = size // 6
    for t in range(frames):
        for bit in range(6):
            video[t, :, bit * width : (bit + 1) * width] = 225 if t >> bit & 1 else 30
    return video


def told(video: np.ndarray) -> list[int]:
    """The numbers that the frames of `stripes` tell."""
    width = video.shape[2] // 6
    bars = np.stack([video[:, :, b * width + 1 : (b + 1) * width - 1].mean((1, 2, 3)) > 128 for b in range(6)], 1)
    return (bars * 2 ** np.arange(6)).sum(1).tolist()


def film(file: Path, video: np.ndarray, fps: int = 10, codec: str = "libx264") -> Path:
    pytest.importorskip("av")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".gif":
        iio.imwrite(file, video, duration=1000 / fps, loop=0)  # Pillow joins equal frames that follow one another
    else:
        iio.imwrite(file, video, plugin="pyav", codec=codec, fps=fps, out_pixel_format="yuv420p")
    return file


@pytest.mark.parametrize("suffix,codec", [(".mp4", "libx264"), (".webm", "libvpx-vp9"), (".gif", "")])
def test_films_are_read_at_any_frame(tmp_path, suffix, codec):
    file = film(tmp_path / f"a{suffix}", stripes(), codec=codec)
    (clip,) = find_clips(file).clips
    assert (clip.frames, clip.height, clip.width, clip.channels) == (40, 32, 32, 3)
    whole = clip.read(np.arange(40))
    assert told(whole) == list(range(40))
    for start, stop, step in ((0, 5, 1), (17, 30, 1), (39, 40, 1), (3, 40, 9)):
        np.testing.assert_array_equal(clip.read(np.arange(start, stop, step)), whole[start:stop:step])
    again = find_clips(file).clips[0]  # from the index, without opening the film
    assert again == clip


def test_equal_frames_of_a_gif_are_counted_as_long_as_they_are_shown(tmp_path):
    video = stripes()[[0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 5, 5, 6]]
    (clip,) = find_clips(film(tmp_path / "a.gif", video)).clips
    assert len(list(iio.imiter(tmp_path / "a.gif"))) < len(video)  # they are not all stored
    assert told(clip.read(np.arange(clip.frames))) == [0, 1, 1, 1, 2, 3, 3, 4, 5, 5, 5, 5, 6]
    (clip,) = find_clips(tmp_path / "a.gif", fps=20).clips  # a finer grid of time
    assert told(clip.read(np.arange(clip.frames))) == [n for t in told(video) for n in (t, t)]


def test_a_variable_frame_rate_is_read_by_time(tmp_path):
    av = pytest.importorskip("av")
    from fractions import Fraction

    times = [0, 1, 2, 5, 6, 9, 10, 11]
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 10)
        stream.codec_context.time_base = Fraction(1, 10)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(stripes()[number], format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    (clip,) = find_clips(tmp_path / "a.mp4").clips
    assert told(clip.read(np.arange(12))) == [0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 6, 7]


def test_minecraft_layout_takes_the_actions_beside_the_film(tmp_path):
    for i, split in enumerate(("train", "train", "test")):
        film(tmp_path / split / "0" / f"{i}.mp4", stripes())
        np.savez(tmp_path / split / "0" / f"{i}.npz", actions=np.arange(40) % 4)
    clips = VideoClips(tmp_path, frames=8, batch=2, action_offset=-1)
    assert [clip.name for clip in clips.clips] == ["train/0/0.mp4", "train/0/1.mp4"] and clips.action_width == 4
    action = clips.sequence([1]).cond["token"]["action"][0]
    assert action[1:39].argmax(-1).tolist() == [(t + 1) % 4 for t in range(1, 39)] and not action[[0, 39]].any()
    (tmp_path / "train" / "0" / "1.npz").unlink()
    with pytest.warns(UserWarning, match="1 of 3 clips have no actions, theirs are zero; the first is train/0/1.mp4"):
        clips = VideoClips(tmp_path, frames=8, batch=2)
    assert not clips.sequence([1]).cond["token"]["action"].any()


def test_folders_of_frames(tmp_path):
    for clip in ("a", "b"):
        (tmp_path / clip).mkdir()
        for t, frame in enumerate(stripes(12)):
            iio.imwrite(tmp_path / clip / f"frame_{t}.png", frame)
        np.save(tmp_path / clip / "actions.npy", np.arange(12.0)[:, None])
    clips = VideoClips(tmp_path, frames=12, held_out=0, batch=2, action_scale=([0], [1]))
    batch = clips.sequence([0, 1])
    frames = ((batch.x[1] + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert told(frames) == list(range(12))  # frame_2 comes before frame_10
    assert batch.cond["token"]["action"][0, :, 0].tolist() == list(range(12))


def test_every_bad_file_is_named_with_its_reason_and_the_rest_is_used(tmp_path):
    good, short = stripes(40), stripes(5)
    np.savez(tmp_path / "good.npz", video=good, actions=np.zeros(40, int))
    np.savez(tmp_path / "good2.npz", video=good, actions=np.ones(40, int))
    np.savez(tmp_path / "short.npz", video=short, actions=np.zeros(5, int))
    np.savez(tmp_path / "empty.npz", video=good[:0], actions=np.zeros(0, int))
    np.savez(tmp_path / "wrong_length.npz", video=good, actions=np.zeros(33, int))
    np.savez(tmp_path / "floats.npz", video=good / 255.0, actions=np.zeros(40, int))
    np.savez(tmp_path / "no_video.npz", actions=np.zeros(40, int))
    np.savez(tmp_path / "negative.npz", video=good, actions=np.full(40, -1))
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "nothing.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    with pytest.warns(UserWarning, match="9 of 11 clips are left out"):
        clips = VideoClips(tmp_path, frames=8, held_out=0, batch=2)
    assert {clip.name for clip in clips.clips} == {"good.npz", "good2.npz"} and clips.log() == {
        "clips": 2, "clips_left_out": 9}
    for name, reason in {"short.npz": "5 frames, a window takes 8", "empty.npz": "no frame",
                         "wrong_length.npz": "33 actions for 40 frames", "floats.npz": r"its video is float64",
                         "no_video.npz": "no 'video'", "negative.npz": "one is -1", "cut.npz": "cannot be opened",
                         "nothing.mp4": "cannot be opened", "noise.mp4": "cannot be opened"}.items():
        assert reason in clips.skipped[name], (name, clips.skipped[name])
    with pytest.raises(ValueError, match="no clip can be used: 11 of 11 clips are left out"):
        VideoClips(tmp_path, frames=41, held_out=0)


def test_mixed_resolutions_are_told_and_a_size_makes_them_one(tmp_path):
    for i, size in enumerate((32, 32, 48)):
        np.savez(tmp_path / f"{i}.npz", video=stripes(10, size))
    said = r"several resolutions .*32x32x3 \(2, 0.npz\), 48x48x3 \(1, 2.npz\): give size="
    with pytest.raises(ValueError, match=said):
        VideoClips(tmp_path, frames=4, held_out=0)
    assert VideoClips(tmp_path, frames=4, size=16, held_out=0).batch_at(0).x.shape == (16, 4, 3, 16, 16)
    np.savez(tmp_path / "grey.npz", video=stripes(10)[..., :1])
    with pytest.raises(ValueError, match="grey and colour do not go together"):
        VideoClips(tmp_path, frames=4, size=16, held_out=0)


def test_a_frame_of_another_size_is_seen_before_anything_is_learnt(tmp_path):
    for name, sides in (("whole", (32, 32, 32)), ("mixed", (32, 32, 20)), ("torn", (32, 32, 32))):
        (tmp_path / name).mkdir()
        for i, side in enumerate(sides):
            Image.fromarray(np.full((side, 32), 9, np.uint8)).save(tmp_path / name / f"f{i}.png")
    (tmp_path / "torn" / "f2.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="2 of 3 clips are left out"):
        clips = VideoClips(tmp_path, frames=2, held_out=0)
    assert clips.skipped["mixed"] == "f2.png is of another size than the first frame, 32x32"
    assert clips.skipped["torn"].startswith("f2.png cannot be read")
    assert clips.sequence(range(len(clips.clips))).x.shape[:2] == (1, 3)


def test_a_film_that_breaks_in_the_middle_is_left_out_while_running(tmp_path):
    for i in range(3):
        film(tmp_path / f"{i}.mp4", np.random.default_rng(i).integers(0, 255, (40, 64, 64, 3), np.uint8))
    clips = VideoClips(tmp_path, frames=8, held_out=0, batch=8)
    data = bytearray((tmp_path / "1.mp4").read_bytes())
    data[len(data) // 4 :] = bytes(len(data) - len(data) // 4)  # the disk loses it after the index was made
    (tmp_path / "1.mp4").write_bytes(data)
    with pytest.warns(UserWarning, match="1.mp4 is left out from now on: .*decoded"):
        for step in range(8):
            batch = clips.batch_at(step)
            assert batch.mask.all() and batch.x.std() > 0.3
    assert list(clips.skipped) == ["1.mp4"] and clips.log() == {"clips": 2, "clips_left_out": 1}
    with pytest.raises(ValueError, match="1.mp4: "):
        clips.sequence([1])
    carried = VideoClips(tmp_path / "0.mp4", frames=8, held_out=0, batch=2, sequential=True)
    carried.skipped["0.mp4"] = "gone"
    assert not carried.batch_at(1).mask.any() and carried.batch_at(1).first.all()


def test_the_cache_shows_the_same_frames_and_is_made_once(tmp_path, monkeypatch):
    for i in range(3):
        film(tmp_path / "set" / f"{i}.mp4", stripes())
        np.savez(tmp_path / "set" / f"{i}.npz", actions=np.arange(40) % 3)
    time.sleep(2 * SETTLED)  # what has just changed is not remembered
    make = lambda **more: VideoClips(tmp_path / "set", frames=6, size=16, held_out=0, stack=2, **more)  # noqa: E731
    plain, cached = make().batch_at(3), make(cache=True).batch_at(3)
    np.testing.assert_array_equal(plain.x, cached.x)
    np.testing.assert_array_equal(plain.cond["token"]["action"], cached.cond["token"]["action"])
    from dforce.data.video.formats.film import FilmClip

    monkeypatch.setattr(FilmClip, "read", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(make(cache=True).batch_at(3).x, plain.x)
    frames = list((tmp_path / "cache" / "frames").iterdir())
    assert len(frames) == 1 and (frames[0] / "frames.u8").stat().st_size == 3 * 40 * 16 * 16 * 3
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 1000}))
    with pytest.raises(ValueError, match="take 0.0 GB.*free: use a smaller size"):
        make(cache=tmp_path / "elsewhere")


def test_a_film_added_later_is_seen_also_through_the_cache(tmp_path):
    make = lambda: VideoClips(tmp_path / "set", frames=6, held_out=0, cache=tmp_path / "frames")  # noqa: E731
    for number in range(2):
        film(tmp_path / "set" / f"{number}.mp4", stripes(9 + number))
        assert [clip.name for clip in make().clips] == [f"{i}.mp4" for i in range(number + 1)]
    film(tmp_path / "set" / "0.mp4", stripes(12))                              # another film of that name
    assert [clip.frames for clip in make().clips] == [12, 10]
    (tmp_path / "set" / "1.mp4").unlink()
    assert [clip.name for clip in make().clips] == ["0.mp4"]


def test_a_clip_that_cannot_be_decoded_is_left_out_of_the_cache(tmp_path, monkeypatch):
    video = np.random.default_rng(0).integers(0, 255, (40, 8, 8, 3), np.uint8)
    for name in "abc":
        np.savez_compressed(tmp_path / f"{name}.npz", video=video)
    data = bytearray((tmp_path / "b.npz").read_bytes())
    data[3000:3400] = bytes(400)  # the archive's directory, at its end, is whole
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.warns(UserWarning, match="1 of 3 clips are left out .b.npz: it cannot be read"):
        clips = VideoClips(tmp_path, frames=6, held_out=0, cache=tmp_path / "frames")
    assert [clip.name for clip in clips.clips] == ["a.npz", "c.npz"]
    np.testing.assert_array_equal(clips.sequence([0]).x, clips.sequence([1]).x)


def test_a_damaged_index_is_made_anew_and_a_changed_file_is_looked_at_again(tmp_path):
    np.savez(tmp_path / "a.npz", video=stripes(10))
    assert find_clips(tmp_path).clips[0].frames == 10
    (index,) = (tmp_path / "cache" / "clips").iterdir()
    index.write_text("{")
    np.savez(tmp_path / "a.npz", video=stripes(12))
    assert find_clips(tmp_path).clips[0].frames == 12


def test_codes_and_empty_folders_are_told_apart(tmp_path):
    (tmp_path / "vq" / "1.0.0").mkdir(parents=True)
    (tmp_path / "vq" / "1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(ValueError, match="pre-encoded .VQ. data.*codes and no frames"):
        find_clips(tmp_path / "vq")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no clip"):
        find_clips(tmp_path / "empty")
    with pytest.raises(ValueError, match="Clips are made by `dforce data video`"):
        find_clips(tmp_path / "nowhere")


def test_the_message_says_what_is_missing_without_pyav(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match=r"dforce\[video\]"):
        find_clips(tmp_path)


@pytest.mark.parametrize("jpeg,chw", [(False, False), (False, True), (True, False)])
def test_minari_episodes_with_images(tmp_path, jpeg, chw):
    minari, spaces = pytest.importorskip("minari"), pytest.importorskip("gymnasium").spaces
    from minari.data_collector import EpisodeBuffer

    shape = (3, 32, 32) if chw else (32, 32, 3)
    space = spaces.Dict({"goal": spaces.Box(-1, 1, (2,)), "view": spaces.Box(0, 255, shape, np.uint8)})
    buffers = []
    for i in range(3):
        video = stripes(13).transpose(0, 3, 1, 2) if chw else stripes(13)
        observations = {"goal": np.zeros((13, 2), np.float32), "view": video}
        buffers.append(EpisodeBuffer(id=i, observations=observations, actions=np.arange(12) % 3, rewards=np.zeros(12),
                                     terminations=np.zeros(12, bool), truncations=np.arange(12) == 11))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers("test/clips-v0", buffers, observation_space=space, jpeg_encoding=jpeg,
                                           action_space=spaces.Discrete(3), data_format="hdf5")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        clips = VideoClips("test/clips-v0", frames=5, held_out=0.34, batch=2)
    assert any("keeps its frames as JPEG" in str(w.message) for w in said) == jpeg
    assert len(clips.clips) == 2 and clips.layout["action_offset"] == 1 and clips.action_width == 3
    batch = clips.sequence([1], start=4, frames=8)
    assert told(((batch.x[0] + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()) == list(range(4, 12))
    # the action taken at frame t - 1 led to frame t
    assert batch.cond["token"]["action"][0].argmax(-1).tolist() == [(t - 1) % 3 for t in range(4, 12)]
    assert not clips.sequence([0]).cond["token"]["action"][0, 0].any()


def test_minari_vectors_are_refused(tmp_path):
    pytest.importorskip("minari")
    from dforce.data import pack, save_episodes

    save_episodes("test/vectors-v0", pack([np.zeros((5, 2))], [np.zeros((4, 1))], [np.zeros(4)]))
    with pytest.raises(ValueError, match="hold no images"):
        VideoClips("test/vectors-v0", frames=2)


def test_cached_windows_come_five_times_as_fast_as_decoding_from_the_start(tmp_path):
    import time

    for i in range(2):
        film(tmp_path / "set" / f"{i}.mp4", np.random.default_rng(i).integers(90, 160, (100, 64, 64, 3), np.uint8))
    plain, cached = (VideoClips(tmp_path / "set", frames=20, held_out=0, cache=c) for c in (False, tmp_path / "frames"))
    windows = [[50], [150]]

    def seconds(read) -> float:
        begin = time.process_time()
        for window in windows:
            read(window)
        return time.process_time() - begin

    for window in windows:
        np.testing.assert_array_equal(plain.gather(window).x, cached.gather(window).x)
    # frame 0 to the window's end: what a reader without time stamps decodes
    start = seconds(lambda window: plain.clips[window[0] // 100].read(np.arange(70)))
    assert start > 5 * min(seconds(cached.gather) for _ in range(3))
