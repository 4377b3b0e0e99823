"""Clips as batches: what a window shows is what the file holds, its action is the one that led to it, and a batch is a
function of its number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dforce.data import VideoClips, checked_batch
from dforce.data.video.clip import ArrayClip, resized
from dforce.data.video.select import led_to


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def numbered(clip: int, frames: int, size: int = 8) -> np.ndarray:
    """A video whose every frame says which it is: red the number of the clip, green that of the frame."""
    video = np.zeros((frames, size, size, 3), np.uint8)
    video[..., 0], video[..., 1], video[..., 2] = clip, np.arange(frames)[:, None, None], np.arange(size)
    return video


def teco(root: Path, clips: int = 6, frames: int = 20, *, compressed: bool = False, layout="{split}/{i}") -> Path:
    """TECO's DMLab layout. actions[t] = (clip + t) % 3."""
    save = np.savez_compressed if compressed else np.savez
    for i in range(clips):
        file = root / (layout.format(split="test" if i == 0 else "train", i=i) + ".npz")
        file.parent.mkdir(parents=True, exist_ok=True)
        save(file, video=numbered(i, frames), actions=(i + np.arange(frames)) % 3,
             pose=np.stack([np.full(frames, i), np.arange(frames)], 1))
    return root


def facts(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip and frame numbers [B, T] of unstacked tokens."""
    value = ((x[:, :, :2, 0, 0] + 1) * 127.5).round().long()
    return value[..., 0], value[..., 1]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", ["{split}/{i}", "{split}/shard_{i}/a", "{split}ing/{i}", "{i}"])
def test_windows_are_the_frames_and_actions_of_the_file(tmp_path, compressed, layout):
    root = teco(tmp_path / "set", compressed=compressed, layout=layout.replace("testing", "test"))
    clips = VideoClips(root, frames=5, batch=8, held_out=0.2)
    assert clips.event_shape == (3, 8, 8) and clips.action_width == 3 and not clips.skipped
    batch = checked_batch(clips.batch_at(3))
    clip, frame = facts(batch.x)
    assert (clip == clip[:, :1]).all() and (frame == frame[:, :1] + torch.arange(5)).all()
    wanted = torch.nn.functional.one_hot((clip + frame) % 3, 3).float() * (frame > 0)[..., None]
    assert torch.equal(batch.cond["token"]["action"], wanted) and batch.first.all() and batch.mask.all()
    assert batch.x.min() >= -1 and batch.x.max() <= 1


def test_splits_are_by_file_and_named_folders_win(tmp_path):
    shown = {}
    for split in ("train", "val"):
        named = VideoClips(teco(tmp_path / "named"), frames=20, batch=5, split=split)
        shown[split] = {clip.name for clip in named.clips}
    assert shown == {"train": {f"train/{i}.npz" for i in range(1, 6)}, "val": {"test/0.npz"}}
    flat = teco(tmp_path / "flat", clips=10, layout="{i}")
    train, val = (VideoClips(flat, frames=4, split=s, held_out=0.3) for s in ("train", "val"))
    names = [{clip.name for clip in part.clips} for part in (train, val)]
    assert len(names[1]) == 3 and not names[0] & names[1] and len(names[0] | names[1]) == 10
    # a bad file moves no other one to the other split
    bad = next(iter(names[0]))
    (flat / bad).write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=f"1 of 10 clips are left out .{bad}"):
        again = VideoClips(flat, frames=4, held_out=0.3)
    assert {clip.name for clip in again.clips} == names[0] - {bad}


def test_batches_are_functions_of_their_number_and_shards_are_parts(tmp_path):
    root = teco(tmp_path / "set", layout="{i}")
    make = lambda **more: VideoClips(root, frames=6, batch=8, virtual_shards=4, **more)  # noqa: E731
    whole = make().batch_at(7)
    assert torch.equal(make().batch_at(7).x, whole.x) and not torch.equal(make().batch_at(8).x, whole.x)
    assert not torch.equal(make(seed=1).batch_at(7).x, whole.x)
    parts = [make().batch_at(7, shards=(i, i + 1)) for i in range(4)]
    assert torch.equal(torch.cat([p.x for p in parts]), whole.x)
    assert torch.equal(torch.cat([p.cond["token"]["action"] for p in parts]), whole.cond["token"]["action"])


def test_random_windows_are_uniform_over_all_starts():
    made = [ArrayClip.of(numbered(i, n), name=str(i)) for i, n in enumerate((10, 30))]
    clips = VideoClips(made, frames=6, held_out=0, batch=60)
    assert len(clips) == 5 + 25
    seen = torch.cat([torch.stack([f[:, 0] for f in facts(clips.batch_at(s).x)], 1) for s in range(100)])
    counts = np.unique(seen.numpy(), axis=0, return_counts=True)[1]
    assert len(counts) == 30  # every start occurs, none beyond the end
    chi2 = ((counts - 200) ** 2 / 200).sum()
    assert chi2 < 60  # 29 degrees of freedom: 5.4 sigma


@pytest.mark.parametrize("stride,stack", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_stride_and_stack_keep_every_action(stride, stack):
    video, actions = numbered(0, 40), np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    clips = VideoClips([ArrayClip.of(video, actions, name="a")], frames=4, stride=stride, stack=stack, held_out=0,
                       action_scale=([0, 0], [1, 1]))
    assert clips.event_shape == (3 * stack, 8, 8) and clips.action_width == 2 * stride * stack
    actions[0] = 0
    for number in (0, 1, len(clips) - 1):
        batch = clips.gather([number])
        frames = number + stride * np.arange(4)
        x = ((batch.x + 1) * 127.5).round().reshape(4, 3, 8, 8)
        assert torch.equal(x[:, 1, 0, 0], torch.from_numpy(frames).float())  # consecutive frames are stacked in order
        padded = np.concatenate([np.zeros((stride, 2), np.float32), actions])
        wanted = np.concatenate([padded[f + 1 : f + 1 + stride].ravel() for f in frames])
        np.testing.assert_array_equal(batch.cond["token"]["action"].ravel(), wanted)


@pytest.mark.parametrize("offset,stored", [(0, 7), (1, 6), (1, 7), (-1, 7), (-1, 8)])
def test_an_action_is_the_one_that_led_to_its_frame(offset, stored):
    raw = np.arange(1.0, stored + 1)[:, None]
    moved = led_to(raw, 7, offset)[:, 0]
    assert moved[0] == 0
    for t in range(1, 7):
        assert moved[t] == (raw[t - offset, 0] if t - offset < stored else 0)
    clip = ArrayClip.of(numbered(0, 7), raw.astype(np.float32), name="a")
    batch = VideoClips([clip], frames=7, held_out=0, action_offset=offset,
                       action_scale=([0], [1])).sequence([0])
    np.testing.assert_array_equal(batch.cond["token"]["action"][0, :, 0], moved)


def test_carried_rows_go_on_where_they_ended():
    lengths = (23, 9, 16, 12)
    made = [ArrayClip.of(numbered(i, n), np.arange(n) % 3, name=str(i)) for i, n in enumerate(lengths)]
    clips = VideoClips(made, frames=5, batch=2, held_out=0, sequential=True)
    assert len(clips) == sum((n - 1) // 5 + 1 for n in lengths)
    shown: dict[int, list[int]] = {}
    before = None
    for step in range(len(clips)):
        batch = clips.batch_at(step)
        clip, frame = facts(batch.x)
        for row in range(2):
            real = int(batch.mask[row].sum())
            if step:
                begins = bool(batch.first[row])
                assert begins == (frame[row, 0] == 0)
                if not begins:
                    assert clip[row, 0] == before[0][row, 0] and frame[row, 0] == before[1][row, -1] + 1
            assert (frame[row, real:] == frame[row, real - 1]).all() and real > 0
            assert not batch.cond["token"]["action"][row, real:].any()
            if row == 0:
                shown.setdefault(int(clip[row, 0]), []).extend(frame[row, :real].tolist())
        before = clip, frame
    assert clips.batch_at(0).first.all()
    assert {i: sorted(set(f)) for i, f in shown.items()} == {i: list(range(n)) for i, n in enumerate(lengths)}


def test_sequences_and_poses(tmp_path):
    clips = VideoClips(teco(tmp_path / "set"), frames=6, stride=2, stack=2)
    batch = clips.sequence([1, 4], start=3)
    assert batch.x.shape == (2, 4, 6, 8, 8)
    clip, frame = facts(batch.x)
    assert clip[:, 0].tolist() == [2, 5] and frame.tolist() == [[3, 7, 11, 15]] * 2
    pose = clips.poses([1, 4], start=3, frames=8)
    assert pose.shape == (2, 8, 2) and pose[1, :, 0].eq(5).all() and pose[0, :, 1].tolist() == list(range(3, 19, 2))
    assert VideoClips([ArrayClip.of(numbered(0, 9), name="a")], frames=3, held_out=0).poses([0], frames=3) is None
    with pytest.raises(ValueError, match="10 frames from 3 on: the clips have 9 there"):
        clips.sequence([1], start=3, frames=10)


def test_statistics_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    videos = [rng.integers(0, 256, (30, 8, 8, 3), np.uint8) for _ in range(4)]
    clips = VideoClips([ArrayClip.of(v, name=str(i)) for i, v in enumerate(videos)], frames=3, held_out=0)
    x = np.stack(videos) / 127.5 - 1
    measured = clips.statistics()
    np.testing.assert_allclose(measured["mean"], x.mean((0, 1, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(measured["std"], x.std((0, 1, 2, 3)), atol=1e-9)
    np.testing.assert_allclose(measured["speed"], np.sqrt((np.diff(x, axis=1) ** 2).mean()), atol=1e-9)
    assert clips.statistics(2)["clips"] == 2 and abs(clips.statistics(2)["brightness"] - x.mean()) < 0.01


def test_resizing_keeps_what_is_flat_and_cuts_the_middle():
    frames = np.zeros((2, 12, 24, 3), np.uint8)
    frames[:, :, :6], frames[:, :, 6:18], frames[:, :, 18:] = 10, 100, 200
    assert (resized(frames, (6, 6)) == 100).all()  # the middle square, one colour
    assert (resized(frames, (3, 6)).mean((0, 1, 3)) - [10, 55, 100, 100, 150, 200])[[0, 2, 3, 5]].max() < 25
    assert resized(frames, (12, 24)) is frames
    assert resized(frames, (24, 48)).shape == (2, 24, 48, 3)


@pytest.mark.slow
def test_balls_need_no_files():
    clips = VideoClips("balls", frames=16, batch=4)
    assert clips.event_shape == (1, 16, 16) and clips.action_width == 0 and clips.batch_at(0).cond == {}
    assert len(VideoClips("balls", frames=16, split="val").clips) == 200
    state = clips.poses([3], frames=64)[0]
    from dforce.data.generate.balls import locate

    assert (locate(clips.sequence([3]).x)[0, :, 0] - state[:, :2]).abs().max() < 0.2 / 16


def test_arguments_that_do_not_go_together():
    clip = [ArrayClip.of(numbered(0, 9), name="a")]
    with pytest.raises(ValueError, match="frames=8 is not divisible by stack=3: the nearest frames is 9"):
        VideoClips(clip, frames=8, stack=3)
    with pytest.raises(ValueError, match=r"no val clip among the 1 that can be used \(held_out=0.05"):
        VideoClips(clip, frames=8, split="val")
    with pytest.raises(ValueError, match="did you mean 'balls'"):
        VideoClips("ball", frames=8)
    with pytest.raises(ValueError, match="clips need names of their own"):
        VideoClips(clip * 2, frames=8)
    with pytest.raises(ValueError, match="actions=2 means choices 0..1, but a has 2"):
        VideoClips([ArrayClip.of(numbered(0, 9), np.arange(9) % 3, name="a")], frames=8, actions=2, held_out=0)
