"""Real video beside a rollout: stretches that do not overlap, clips no longer than needed, what a summary says."""

import numpy as np
import pytest
import torch

from dforce.data.video.clip import ArrayClip
from dforce.report.statistics import Interval
from dforce.video.evaluation import MetricSettings
from dforce.video.metrics.measure import RowMaker
from dforce.video.model import VideoModel, load_video
from dforce.video.reference_clips import RealVideo
from dforce.video.rollout_run import RolloutRun
from dforce.video.stream import Recipe
from tests.small_video import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VideoModel:
    return load_video(save_model(tmp_path_factory.mktemp("model") / "checkpoint", shape=(3, 8, 8), window=4))


def films(*lengths):
    """Red is the number of the film, green that of the frame."""
    out = []
    for i, length in enumerate(lengths):
        video = np.zeros((length, 8, 8, 3), np.uint8)
        video[..., 0], video[..., 1] = i, np.arange(length)[:, None, None]
        out.append(ArrayClip.of(video, name=str(i)))
    return out


def told(frames):
    return ((frames[:, :, :2, 0, 0] + 1) * 127.5).round().long()


def test_stretches_begin_clips_first_and_never_share_a_frame(model):
    real = RealVideo(model, films(50, 24, 9, 50), split="train")
    every = told(real.stretches(99, 10).frames)
    places = [(int(each[0, 0]), int(each[0, 1])) for each in every]
    assert len(set(places)) == len(places) and all(begin % 10 == 0 for _, begin in places)
    assert (every[:, :, 1] == every[:, :1, 1] + torch.arange(10)).all()
    order = [film for film, begin in places if begin == 0]
    assert order == told(real.clips(len(order), 10).frames)[:, 0, 0].tolist()
    assert [begin for _, begin in places] == sorted(begin for _, begin in places)
    assert torch.equal(told(real.stretches(2, 10).frames), every[:2])
    with pytest.raises(ValueError, match="(?s)no train clip .* has 60 frames"):
        real.stretches(2, 60)


def test_a_clip_is_read_as_far_as_it_is_needed(model, monkeypatch):
    real, read = RealVideo(model, films(40, 30, 20), split="train"), []
    before = ArrayClip.read
    monkeypatch.setattr(ArrayClip, "read", lambda self, index: (read.append(len(index)), before(self, index))[1])
    assert real.whole([0, 1])[0].shape[1] == min(clip.frames for clip in real.set.clips) and real.whole(
        [0], 7)[0].shape[1] == 7 and read[-1] == 7


def test_a_summary_says_first_what_broke_off_and_how_little_stands_behind_it(model):
    run = RolloutRun(model=model, recipe=Recipe(), settings=MetricSettings(), frames=300, samples=4, context=2,
                     data="x", actions=None, seed=0, measure=True, film=False, fps=15, save_every=100)
    real = RealVideo(model, films(40, 30, 20), split="val")
    maker = RowMaker("x", "forcing", {})
    rows = [maker.row("broken off", Interval(0.75, 0.3, 0.95, 4)),
            *(maker.having(frames=name).row("frechet / floor", value, n=4) for name, value in (
                ("0-100", 1.0), ("200-300", 1.234), ("worst 100", 21.04)))]
    said = run.summary(300, rows, real, real.clips(4, 2))
    assert said == ("4 rollouts of 300 frames, generated after 2 real ones: 3 of 4 broke off from real video; frames "
                    "200-300 are 1.23 times as far from it as other real video is, the worst 100 21. Held out: 1 "
                    "clip only. They begin in 1 clip only, so intervals are too narrow.")
    assert run.summary(300, [], None, None) == "4 rollouts of 300 frames, generated after 2 real ones."
