"""Coders of cameras: what they keep of a picture, where they lie, and that policies act from pictures with them."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from dforce.cli.main import main
from dforce.data.minari import save_episodes
from dforce.data.token_layout import parts_of
from dforce.nets.pictures import CameraCoders, PictureCoder
from dforce.policy.client import PolicyClient
from dforce.policy.imitation import PictureCoding
from dforce.runs import picture_coding
from dforce.runs.imitation import load_policy
from dforce.runs.picture_coding import coders_of, encoded
from dforce.train.checkpoint import CheckpointError, find, load
from tests.pictures import SIDE, filmed, picture
from tests.policy.serving import serving
from tests.train.test_checkpoint import reseal
from tests.train.test_contents import changed

TINY = PictureCoding(colors=1, width=2, side=SIDE, channels=4, steps=20, batch=8)
DATA, WORDS = "dforce/squares-v0", ["chunk=2", "net.width=8", "batch=4", "held_out=0.1", "fit.warmup=1", "fit.steps=2",
                                    "pictures.colors=1", "pictures.width=2", "pictures.side=16", "pictures.channels=4",
                                    "pictures.steps=20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of stores and of a run, episodes)."""
    root = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        _places(root, patch)
        save_episodes(DATA, filmed())
        assert main(["imitate", f"data={DATA}", *WORDS, "out=run"]) == 0
    return root, filmed()


@pytest.fixture(autouse=True)
def places(request, tmp_path, monkeypatch):
    root = request.getfixturevalue("trained")[0] if "trained" in request.fixturenames else tmp_path
    _places(root, monkeypatch)


def _places(root, patch):
    patch.chdir(root)
    patch.setenv("MINARI_DATASETS_PATH", str(root / "minari"))
    patch.setenv("DFORCE_CACHE", str(root / "cache"))
    torch.set_num_threads(1)


def observed(rows=2, **changes):
    pictures = np.stack([picture(each / rows) for each in range(rows)])
    return {"left": pictures, "right": pictures, "joint": np.zeros((rows, 1)), **changes}


def test_the_numbers_of_a_picture_tell_where_the_square_is_and_pictures_of_noise_do_not():
    episodes = filmed(24, cameras=("left",))
    coders = coders_of(TINY, episodes, np.arange(20))
    numbers = encoded(episodes, coders).observations[:, :5]
    place = np.concatenate([episodes.actions[:, 0].reshape(24, -1), np.full((24, 1), np.nan)], 1).ravel()
    rows, test = np.isfinite(place), np.arange(len(place)) >= 20 * 9

    def error(features):
        """Of a linear read-out on episodes that neither it nor the coders were trained on."""
        a = np.concatenate([features, np.ones((len(features), 1))], 1)
        weights = np.linalg.lstsq(a[rows & ~test], place[rows & ~test], rcond=None)[0]
        return float(np.sqrt(np.mean((a[rows & test] @ weights - place[rows & test])**2)))

    assert error(numbers) < 0.1 * place[rows & test].std()
    assert error(np.random.default_rng(0).normal(size=numbers.shape)) > 0.8 * place[rows & test].std()


@pytest.mark.slow
def test_coders_are_trained_once_and_made_anew_where_the_file_is_wrong(monkeypatch, tmp_path):
    episodes, short = filmed(4), replace(TINY, steps=2)
    first = coders_of(short, episodes, np.arange(4))
    trainings = []
    train = picture_coding.train_auxiliary
    monkeypatch.setattr(picture_coding, "train_auxiliary", lambda *a, **k: trainings.append(1) or train(*a, **k))
    again = coders_of(short, episodes, np.arange(4))
    assert not trainings
    (file,) = (tmp_path / "cache" / "pictures").glob("coders-*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    anew = coders_of(short, episodes, np.arange(4))
    assert len(trainings) == 2  # one a camera
    for other in (again, anew):
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    coders_of(short, episodes, np.arange(4), seed=1)
    coders_of(short, filmed(5), np.arange(4))
    assert len(trainings) == 6  # another seed, other data


def test_every_camera_is_a_part_of_its_own_before_the_others():
    coders = CameraCoders({"left": (SIDE, SIDE), "right": (SIDE, SIDE)}, side=SIDE, width=2, colors=1,
                          channels=2)
    episodes = filmed(3)
    numbers = encoded(episodes, coders)
    assert parts_of(numbers.names()[0]) == {"left": 5, "right": 5, "joint": 1} and not numbers.images
    for place, name in enumerate(episodes.images):
        one = coders.encode(name, torch.from_numpy(episodes.images[name]))
        np.testing.assert_allclose(numbers.observations[:, 5 * place:5 * place + 5], one, atol=1e-6)
    assert parts_of(encoded(filmed(3, proprio=False), coders).names()[0]) == {"left": 5, "right": 5}
    with pytest.raises(ValueError, match=r"cameras \{'left'.*the data have \{'left'"):
        encoded(filmed(3, cameras=("left",)), coders)
    with pytest.raises(ValueError, match="both a camera and a part"):
        encoded(replace(episodes, about={"observation_names": ["observation.left[0]"]}), coders)
    with pytest.raises(ValueError, match="multiple of 8, got side=12"):
        PictureCoder(12, 4, 0, 4)


def test_a_policy_acts_from_pictures_with_the_coders_of_its_checkpoint(trained):
    policy, layout = load_policy("run")
    assert layout["tokens"]["parts"] == {"left": 5, "right": 5, "joint": 1}
    actions, state = policy.act(observed(), policy.reset(2))
    assert actions.shape == (2, 2, 1) and np.isfinite(actions).all()
    alone, _ = policy.act({name: value[1:] for name, value in observed().items()}, policy.reset(1))
    np.testing.assert_allclose(alone[0], actions[1], atol=1e-5)
    dark, _ = policy.act(observed(left=np.zeros((2, SIDE, SIDE, 3), np.uint8)), policy.reset(2))
    assert not np.array_equal(dark, actions)
    (cached,) = (trained[0] / "cache" / "pictures").glob("coders-*")
    stored = picture_coding.load_coders(cached).state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in load("run").coders.state_dict().items())
    assert main(["imitate", "resume=run", "fit.steps=3"]) == 0  # with the coders of the checkpoint
    assert len(list((trained[0] / "cache" / "pictures").glob("coders-*"))) == 1


def test_a_camera_that_is_off_is_a_missing_token_and_only_if_it_is_called_so(trained):
    policy, _ = load_policy("run")
    gone = {name: value for name, value in observed().items() if name != "left"}
    off, _ = policy.act(gone, policy.reset(2), missing={"left": np.ones(2, bool)})
    assert np.isfinite(off).all()
    covered, _ = policy.act(observed(), policy.reset(2), missing={"left": np.ones(2, bool)})
    assert off.shape == covered.shape
    for wrong, message in (
            (gone, "no pictures of the camera left, it has right, joint"),
            (observed(left=np.zeros((2, 8, 8, 3), np.uint8)), r"left are uint8 \(2, 8, 8, 3\), this policy wants"),
            (observed(left=np.zeros((2, SIDE, SIDE, 3), np.float32)), r"left are float32 .* wants uint8"),
            ({**observed(), "third": np.zeros((2, 1))}, "wanted are observations of 2 episodes")):
        with pytest.raises(ValueError, match=message):
            policy.act(wrong, policy.reset(2))
    with pytest.raises(ValueError, match="no pictures of the camera left"):
        policy.act(gone, policy.reset(2), missing={"left": np.array([True, False])})


def test_a_policy_from_pictures_is_served_bit_for_bit(trained):
    pytest.importorskip("websockets")
    policy, _ = load_policy("run")
    one = observed(1)
    gone = {"right": np.ones(1, bool)}
    wanted, _ = policy.act({**one, "right": 255 - one["right"]}, policy.reset(1), missing=gone)
    with serving(policy) as (_, url), PolicyClient(url) as client:
        assert client.about["parts"] == {"left": [SIDE, SIDE, 3], "right": [SIDE, SIDE, 3], "joint": 1}
        seen = {name: one[name][0] for name in ("left", "joint")}
        np.testing.assert_array_equal(client.act(seen, missing={"right": True}), wanted[0])
        for wrong in (np.zeros((SIDE, SIDE, 3), np.float32), np.zeros((SIDE, 2 * SIDE, 3), np.uint8)):
            with pytest.raises(ValueError, match=r"left is a picture, \|u1 of shape \(16, 16, 3\), got"):
                client.act({**seen, "left": wrong}, missing={"right": True})


@pytest.mark.parametrize("key, value, message", [
    ("sizes", {"left": [SIDE, SIDE]}, "belongs to another model"), ("width", 5, "camera left of 8 numbers"),
    ("side", "x", "side in cameras in layout.json must be"), ("channels", 10**7, "must be at least 1"),
    ("sizes", {"left": [0, SIDE], "right": [SIDE, SIDE]}, "must be at least 1")])
def test_a_checkpoint_whose_cameras_do_not_fit_is_refused(trained, tmp_path, key, value, message):
    folder = tmp_path / "bad"
    shutil.copytree(find("run"), folder)
    changed(folder, "layout.json", lambda layout: layout["cameras"].__setitem__(key, value))
    reseal(folder)
    with pytest.raises(CheckpointError, match=message):
        load(folder)
