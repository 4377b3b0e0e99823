"""Which clips are held out, what is cut off, and real actions in units of their own spread."""

import numpy as np
import pytest
import torch

from dforce.data.video.clip import ArrayClip
from dforce.data.video.dataset import VideoClips
from dforce.data.video.select import _crops


def made(count, frames=20, *, height=8, width=8, actions=None):
    """Clips whose frames say which they are: red the number of the frame // 256, green the rest, blue the clip's."""
    out = []
    for i in range(count):
        video = np.zeros((frames, height, width, 3), np.uint8)
        number = np.arange(frames)[:, None, None]
        video[..., 0], video[..., 1], video[..., 2] = number // 256, number % 256, i
        out.append(ArrayClip.of(video, None if actions is None else actions[i], name=f"{i}.mp4"))
    return out


def parts(clips, **more):
    return [VideoClips(clips, frames=4, split=split, **more) for split in ("train", "val")]


@pytest.mark.parametrize("count, held_out, wanted", [(2, .05, 1), (10, .05, 2), (40, .05, 8), (100, .05, 8),
                                                     (40, .5, 20), (240, .05, 12)])
def test_eight_clips_are_held_out_where_that_is_a_fifth_at_most(count, held_out, wanted):
    train, val = ({clip.name for clip in each.clips} for each in parts(made(count, 4), held_out=held_out))
    assert len(val) == wanted and len(train) == count - wanted and not train & val


def test_a_clip_added_later_moves_at_most_one_other():
    before = {clip.name for clip in parts(made(60, 4))[1].clips}
    after = {clip.name for clip in parts(made(61, 4))[1].clips}
    assert len(before) == len(after) == 8 and len(before & after) >= 7
    assert after - before <= {"60.mp4"}                                        # none that was learnt from


def test_a_long_film_is_split_in_time_and_no_frame_is_on_both_sides():
    train, val = parts(made(1, 3000), batch=64)
    assert [clip.frames for clip in val.clips] == [75] * 8 and [clip.frames for clip in train.clips] == [2400]
    assert val.sequence([1], frames=3).x[0, :, 1, 0, 0].mul(127.5).add(127.5).round().tolist() == [
        float(number % 256) for number in (2475, 2476, 2477)]
    shown = [((each.gather(np.arange(len(each))).x[:, :, :2, 0, 0] + 1) * 127.5).round() @ torch.tensor([256.0, 1.0])
             for each in (train, val)]
    assert shown[0].max() == 2399 and shown[1].min() == 2400 and shown[1].max() == 2999


def test_actions_and_digest_follow_a_stretch():
    actions = [np.arange(600) % 3]
    val = parts(made(1, 600, actions=actions))[1]
    assert [clip.name for clip in val.clips] == ["0.mp4[480:540]", "0.mp4[540:600]"]
    assert val.sequence([1]).cond["token"]["action"][0].argmax(-1).tolist() == actions[0][540:600].tolist()


def test_few_short_clips_are_held_out_whole_and_one_alone_names_the_key():
    assert [len(each.clips) for each in parts(made(3, 100))] == [2, 1]
    with pytest.raises(ValueError, match="300 frames of one; held_out=0 holds none out"):
        VideoClips(made(1, 100), frames=4, split="val")


def test_real_actions_are_normalised_by_all_of_them_or_as_the_model_had_them():
    rng = np.random.default_rng(0)
    raw = [(rng.normal(size=(20, 2)) * [300.0, 0.01] + [1000.0, 5.0]).astype(np.float32) for _ in range(3)]
    clips = VideoClips(made(3, actions=raw), frames=4, held_out=0)
    mean, std = clips.layout["action_scale"]
    np.testing.assert_allclose(mean, np.concatenate(raw).mean(0), rtol=1e-5)
    got = torch.cat([clips.sequence([i]).cond["token"]["action"][0, 1:] for i in range(3)]).numpy()
    np.testing.assert_allclose(got * std + mean, np.concatenate([each[1:] for each in raw]), rtol=1e-4)
    assert np.abs(got).max() < 5
    again = VideoClips(made(1, actions=[raw[0] * 2]), frames=4, held_out=0, action_scale=(mean, std))
    np.testing.assert_allclose(again.sequence([0]).cond["token"]["action"][0, 1:] * torch.tensor(std) + torch.tensor(
        mean), 2 * raw[0][1:], rtol=1e-4)
    with pytest.raises(ValueError, match="have 2 numbers, those that the model learnt from 3"):
        VideoClips(made(3, actions=raw), frames=4, held_out=0, action_scale=([0] * 3, [1] * 3))


def test_choices_written_as_floats_stay_as_they_are():
    flags = [np.eye(3, dtype=np.float32)[np.arange(20) % 3]]
    clips = VideoClips(made(1, actions=flags), frames=4, held_out=0)
    assert "action_scale" not in clips.layout
    assert torch.equal(clips.sequence([0]).cond["token"]["action"][0, 1:], torch.from_numpy(flags[0][1:]))


@pytest.mark.parametrize("size, wanted", [((16, 16), r"the middle 75% stay; size=\[12,16\] keeps 100%"),
                                          ((32, 24), r"the middle 56% stay; size=\[24,32\] keeps 100%"),
                                          ((24, 32), None)])
def test_what_is_cut_off_is_told_with_a_size_that_fits(size, wanted):
    clips = made(2, 1, height=48, width=64)
    with pytest.warns(UserWarning, match=wanted) if wanted else pytest.MonkeyPatch.context():
        VideoClips(clips, frames=1, held_out=0, size=size)
    assert bool(_crops(clips, size)) == bool(wanted)
