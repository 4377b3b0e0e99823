"""Actions that are real numbers: from files, at random, by keys, in the units of training."""

import numpy as np
import pytest
import torch

from dforce.data.video.clip import ArrayClip
from dforce.video.model import VideoModel, load_video
from dforce.video.reference_clips import RealVideo, rollout_actions
from dforce.video.server import action_of, choices, keys_of
from tests.small_video import save_model

SCALE = [[10.0, -3.0], [2.0, 0.5]]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> VideoModel:
    plain = load_video(save_model(tmp_path_factory.mktemp("model") / "checkpoint", shape=(3, 8, 8), actions=2))
    return plain._replace(layout={**plain.layout, "action_scale": SCALE})


def of(kind, model, **more):
    return rollout_actions(kind, model, None, batch=64, context=None, frames=400, seed=0, **more)


def test_a_file_holds_them_as_they_are_stored(model, tmp_path):
    stored = np.random.default_rng(0).normal(size=(400, 2))
    np.save(tmp_path / "actions.npy", stored)
    got = of(str(tmp_path / "actions.npy"), model)(0, 400)[5]
    np.testing.assert_allclose(got, (stored - SCALE[0]) / SCALE[1], rtol=1e-5)


def test_random_ones_are_normal_and_held(model):
    actions = of("random", model)
    drawn = actions(8, 392)
    assert torch.equal(actions(16, 8), drawn[:, 8:16]) and torch.equal(drawn[:, 8], drawn[:, 15])
    held = drawn[:, ::8].flatten(0, 1)                                         # 3,136 draws of two numbers
    assert held.mean(0).abs().max() < 0.07 and (held.std(0) - 1).abs().max() < 0.05
    assert abs(float(torch.corrcoef(held.T)[0, 1])) < 0.07


def test_a_walker_is_refused(model):
    with pytest.raises(ValueError, match="walker chooses among actions, and this model takes real numbers"):
        of("walker", model)


def test_keys_push_one_number_either_way(model):
    keys = keys_of(model)
    assert choices(model) == 4 and keys == {"ArrowLeft": 0, "ArrowRight": 1, "ArrowDown": 2, "ArrowUp": 3}
    assert [action_of(model, held).tolist() for held in (None, 0, 3)] == [[0, 0], [-1.5, 0], [0, 1.5]]
    choosing = model._replace(layout={})
    assert choices(choosing) == 2 and action_of(choosing, 1).tolist() == [0, 1]


def test_clips_are_read_in_the_units_of_the_model_s_training(model):
    raw = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    clips = [ArrayClip.of(np.zeros((20, 8, 8, 3), np.uint8), raw, name=name) for name in "ab"]
    real = RealVideo(model, clips)
    np.testing.assert_allclose(real.clips(1).actions[0, 1:], ((raw - SCALE[0]) / SCALE[1])[1:], rtol=1e-5)
