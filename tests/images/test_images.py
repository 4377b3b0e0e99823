"""Images, the classifier, what is measured on samples, and the model that ships."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dforce.data.images import ImageBatches, Images, load_images
from dforce.guidance.wrapper import classifier_free
from dforce.images import (
    accuracy,
    class_cond,
    diversity,
    draw,
    features,
    frechet,
    guided_by_class,
    load_classifier,
    load_model,
    pixels,
    save_classifier,
    train_classifier,
)
from dforce.images.judge import diversity_interval
from dforce.train.checkpoint import PRETRAINED, CheckpointError, load


def picture(file: Path, value: int = 0, size=(6, 6), mode: str = "L") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 255)).save(file)


# --------------------------------------------------------------------------------------------------------------- data

def test_digits_are_split_once_and_for_all():
    pytest.importorskip("sklearn")
    train, test, every = (load_images("digits", split=split) for split in ("train", "test", "all"))
    assert train.x.shape == (1438, 1, 1, 8, 8) and test.x.shape == (359, 1, 1, 8, 8) and len(every.x) == 1797
    assert train.classes == tuple("0123456789") and train.shape == (1, 8, 8)
    assert float(every.x.min()) == -1 and float(every.x.max()) == 1
    rows = {x.numpy().tobytes() for x in train.x}
    assert sum(x.numpy().tobytes() in rows for x in test.x) == 0  # no digit of scikit-learn's is there twice
    assert torch.equal(load_images("digits").x, train.x)
    assert not torch.equal(load_images("digits", seed=1).x, train.x)
    assert torch.bincount(test.label, minlength=10).min() > 20
    whole = torch.cat([train.x, test.x]).flatten(1).sum(1).sort().values
    assert torch.equal(whole, every.x.flatten(1).sum(1).sort().values)


def test_patches_share_no_pixel_between_the_splits(monkeypatch):
    data = pytest.importorskip("skimage.data")
    from dforce.data import images

    monkeypatch.setattr(images, "NATURAL", ("coffee", "grass"))
    monkeypatch.setattr(images, "PATCHES", (50, 20))
    # an image that says where it is: its red channel is the column, its green one the row
    place = np.stack(np.broadcast_arrays(np.arange(96)[None], np.arange(96)[:, None], 7), -1).astype(np.uint8)
    monkeypatch.setattr(data, "grass", lambda: place)
    train, test = load_images("patches"), load_images("patches", split="test")
    assert train.x.shape == (100, 1, 3, 32, 32) and test.x.shape == (40, 1, 3, 32, 32)
    assert train.label.tolist() == [0] * 50 + [1] * 50 and train.classes == ("coffee", "grass")
    columns = [set(pixels(x.x[x.label == 1])[..., 0].flatten().tolist()) for x in (train, test)]
    assert not columns[0] & columns[1] and max(columns[0]) < min(columns[1]) and len(columns[1]) >= 24
    assert torch.equal(load_images("patches").x, train.x)
    assert not torch.equal(load_images("patches", seed=1).x, train.x)
    assert len(load_images("patches", split="all").x) == 140


def test_a_folder_of_folders(tmp_path):
    for name, count in (("cat", 10), ("ant", 5)):
        for i in range(count):
            picture(tmp_path / name / f"{i}.png", 20 * i)
    train, test = load_images(tmp_path), load_images(tmp_path, split="test")
    assert train.classes == ("ant", "cat") and train.shape == (1, 6, 6)
    assert train.label.bincount().tolist() == [4, 8] and test.label.bincount().tolist() == [1, 2]
    assert sorted({*pixels(train.x)[4:, 0, 0, 0].tolist(), *pixels(test.x)[1:, 0, 0, 0].tolist()}) == [
        20 * i for i in range(10)]
    picture(tmp_path / "cat" / "x.png", 9, mode="RGB")
    assert load_images(tmp_path, split="all").shape == (3, 6, 6)


def test_a_folder_is_cut_and_resized(tmp_path):
    whole = np.zeros((4, 8), np.uint8)
    whole[:, 2:6] = 255  # the middle square
    (tmp_path / "a").mkdir()
    Image.fromarray(whole).save(tmp_path / "a" / "wide.png")
    picture(tmp_path / "a" / "small.png", 255, size=(2, 2))
    with pytest.raises(ValueError, match=r"several sizes \(.*is .*x.* and .*\): give size="):
        load_images(tmp_path, split="all")
    assert (load_images(tmp_path, split="all", size=4).x == 1).all()


def test_what_is_wrong_with_a_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="holds no folders"):
        load_images(tmp_path)
    for i in range(4):
        picture(tmp_path / "a" / f"{i}.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "3.png").write_bytes((tmp_path / "a" / "3.png").read_bytes()[:40])
    with pytest.warns(UserWarning, match="passed over .*3.png"):
        assert len(load_images(tmp_path, split="all").x) == 3
    (tmp_path / "b").mkdir()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"b holds no image that can be read"):
        load_images(tmp_path)
    shutil.rmtree(tmp_path / "a")
    picture(tmp_path / "b" / "0.png")
    with pytest.raises(ValueError, match="there is none for test"):
        load_images(tmp_path, split="test")
    for wrong, message in ((("nowhere",), "neither 'digits', 'patches', 'fashion' nor a folder"),):
        with pytest.raises(ValueError, match=message):
            load_images(*wrong)
    with pytest.raises(ValueError, match="split must be"):
        load_images(tmp_path, split="val")
    with pytest.raises(ValueError, match="is for folders"):
        load_images("digits", size=16)


def few(count=10, classes=("a", "b")):
    x = torch.arange(float(count)).view(-1, 1, 1, 1, 1).expand(-1, 1, 1, 2, 2)
    return Images(x, torch.arange(count) % len(classes), classes)


def test_batches_go_through_all_images_and_drop_their_labels():
    batches = ImageBatches(few(), batch=5, seed=3)
    for epoch in range(3):
        seen = torch.cat([batches(2 * epoch + part).x[:, 0, 0, 0, 0] for part in range(2)])
        assert sorted(seen.tolist()) == list(range(10))
    assert torch.equal(batches(4).x, ImageBatches(few(), batch=5, seed=3)(4).x)  # whatever was asked for before
    assert not torch.equal(batches(4).x, ImageBatches(few(), batch=5, seed=4)(4).x)
    dropping = ImageBatches(few(1000), batch=1000, drop=0.3)
    kept = ImageBatches(few(1000), batch=1000)(0)
    batch = dropping(0)
    null = batch.cond["static"]["class"] == 2
    assert abs(float(null.float().mean()) - 0.3) < 4 * math.sqrt(0.21 / 1000)
    assert torch.equal(batch.x, kept.x)
    assert torch.equal(batch.cond["static"]["class"][~null], kept.cond["static"]["class"][~null])
    for wrong in ({"batch": 11}, {"batch": 0}, {"batch": 5, "drop": 1.5}):
        with pytest.raises(ValueError, match="batch must lie in 1..10|drop is a share"):
            ImageBatches(few(), **wrong)


# ------------------------------------------------------------------------------------------------------------ measures

def test_diversity_is_the_mean_over_pairs():
    g = torch.Generator().manual_seed(0)
    x, labels = torch.randn(12, 1, 2, 3, 3, generator=g), torch.tensor([0] * 5 + [1] * 4 + [2] * 2 + [3])

    def by_pairs(group):
        n = len(group)
        return sum(float((a - b).square().sum()) for a in group for b in group) / (n * (n - 1))

    assert diversity(x) == pytest.approx(by_pairs(x), rel=1e-5)
    wanted = np.mean([by_pairs(x[labels == c]) for c in range(3)])  # a class of one has no pair
    assert diversity(x, labels) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="at least two"):
        diversity(x[:2], torch.tensor([0, 1]))


def test_the_jackknife_of_diversity_by_hand_and_its_coverage():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(9, 1, 1, 2, 2, generator=g)
    found = diversity_interval(x)
    left_out = torch.tensor([diversity(torch.cat([x[:i], x[i + 1:]])) for i in range(9)]).double()
    half = 1.959963984540054 * math.sqrt(8 / 9 * float((left_out - left_out.mean()).square().sum()))
    assert found.high - found.value == pytest.approx(half, rel=1e-4) and found.n == 9
    assert all(map(math.isnan, diversity_interval(x[:5], torch.tensor([0, 0, 0, 1, 1]))[1:3]))
    labels = torch.tensor([0, 1]).repeat_interleave(30)
    hits = 0
    for _ in range(200):
        low, high = diversity_interval(torch.randn(60, 1, 1, 2, 2, generator=g), labels)[1:3]
        hits += low < 8.0 < high  # E|a - b|^2 = 2 dims
    assert 0.88 < hits / 200 < 0.99


def test_frechet_distance_of_gaussians():
    g = torch.Generator().manual_seed(2)
    a = torch.randn(4000, 3, generator=g).double()
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, a + torch.tensor([3.0, 0, 4.0])) == pytest.approx(25, rel=1e-9)
    assert frechet(a, 3 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * float(torch.cov(a.T).trace()), rel=1e-9)
    b = torch.randn(3000, 3, generator=g).double() @ torch.randn(3, 3, generator=g).double()
    one, other = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    linalg = pytest.importorskip("scipy.linalg")
    cross = np.trace(np.real(linalg.sqrtm(one @ other)))
    wanted = float((a.mean(0) - b.mean(0)).square().sum()) + np.trace(one + other) - 2 * cross
    assert frechet(a, b) == pytest.approx(float(wanted), rel=1e-6) == frechet(b, a)


def test_pixels():
    x = torch.tensor([-2.0, -1.0, 0.0, 1.0]).view(1, 1, 1, 2, 2)
    assert pixels(x)[0, :, :, 0].tolist() == [[0, 0], [128, 255]] and pixels(x).dtype == np.uint8
    shades = torch.arange(256).view(1, 1, 1, 16, 16) / 127.5 - 1
    assert pixels(shades).flatten().tolist() == list(range(256))
    with pytest.raises(ValueError, match=r"\[B, 1, C, H, W\], got \[1, 2, 2\]"):
        pixels(x[0, 0])


# ---------------------------------------------------------------------------------------------------------- classifier

def two_shades(count=64):
    g = torch.Generator().manual_seed(0)
    label = torch.randint(2, (count,), generator=g)
    return Images((label - 0.5)[:, None, None, None, None] + 0.1 * torch.randn(count, 1, 3, 6, 10, generator=g), label,
                  ("dark", "light"))


def test_a_classifier_learns_saves_and_loads(tmp_path):
    images = two_shades()
    before = torch.get_rng_state()
    classifier = train_classifier(images, seed=0, steps=12, batch=32)
    assert torch.equal(before, torch.get_rng_state())
    assert accuracy(classifier, images.x, images.label).all()
    assert not accuracy(classifier, images.x, 1 - images.label).any()
    again = train_classifier(images, seed=0, steps=12, batch=32)
    assert all(torch.equal(a, b) for a, b in zip(classifier.parameters(), again.parameters(), strict=True))
    logits = classifier(images.x)
    torch.testing.assert_close(classifier.head(classifier.features(images.x)), logits)
    assert features(classifier, images.x).shape == (64, classifier.size) and not logits.requires_grad
    run = tmp_path / "run"
    save_classifier(run / "classifier", classifier, about={"steps": 12})
    for where in (run, run / "classifier", run / "checkpoints" / "step_00000001"):
        loaded = load_classifier(where)
        assert torch.equal(loaded(images.x), logits) and loaded.classes == ("dark", "light")
    weights = run / "classifier" / "model.safetensors"
    broken = bytearray(weights.read_bytes())
    broken[-3] ^= 1
    weights.write_bytes(broken)
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(run)
    with pytest.raises(CheckpointError, match="no classifier at"):
        load_classifier(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"takes images \[B, 1, 3, 6, 10\]"):
        classifier(torch.zeros(1, 1, 1, 8, 8))
    with pytest.raises(ValueError, match="as many labels"):
        accuracy(classifier, images.x, images.label[:3])


def test_the_gradient_of_the_classifier_reaches_the_image():
    classifier = load_classifier("digits")
    x = torch.zeros(1, 1, 1, 8, 8, requires_grad=True)
    gradient, = torch.autograd.grad(classifier(x).log_softmax(1)[0, 3], x)
    assert gradient.isfinite().all() and gradient.any()


# ------------------------------------------------------------------------------------------------ the model that ships

LABELS = torch.arange(10).repeat_interleave(20)


@pytest.fixture(scope="module")
def model():
    return load_model("digits")


def test_the_shipped_digits_are_their_class(model):
    assert model.classes == tuple("0123456789") and model.shape == (1, 8, 8) and model.data == "digits"
    x = draw(model, LABELS, seed=1)
    judge = load_classifier("digits")
    assert float(accuracy(judge, x, LABELS).float().mean()) >= 0.95
    assert float(accuracy(judge, x, (LABELS + 1) % 10).float().mean()) < 0.1


def test_the_shipped_digits_vary_and_lie_near_real_ones(model):
    pytest.importorskip("sklearn")
    test, judge = load_images("digits", split="test"), load_classifier("digits")
    assert float(accuracy(judge, test.x, test.label).float().mean()) >= 0.97
    a, b = test.x[:179], test.x[179:358]
    x = draw(model, test.label[179:358], seed=2)
    floor = frechet(features(judge, b), features(judge, a))
    assert diversity(x, test.label[179:358]) > 0.8 * diversity(b, test.label[179:358])
    assert frechet(features(judge, x), features(judge, a)) < 2 * floor
    blurred = b.mean(0, keepdim=True) + 0.5 * (b - b.mean(0))
    assert frechet(features(judge, blurred), features(judge, a)) > 2 * floor  # the measure sees what is wrong


def test_the_shipped_model_beats_the_best_gaussian_on_the_objective(model):
    """Pixels with their joint covariance: E[x0 | noisy] in closed form, fitted to the training images."""
    pytest.importorskip("sklearn")
    from dforce.core.loss import forcing_loss

    train, test = load_images("digits"), load_images("digits", split="test")
    flat = train.x.flatten(1).double()
    mean, (value, vector) = flat.mean(0), torch.linalg.eigh(torch.cov(flat.T))

    class Gaussian:
        def init_state(self, batch, cond=None):
            return None

        def __call__(self, noisy, level, state, cond=None):
            alpha, sigma = (table.flatten(1) for table in model.schedule(level, noisy))
            gain = alpha * value / (alpha**2 * value + sigma**2)
            found = mean + ((noisy.flatten(1) - alpha * mean) @ vector * gain) @ vector.T
            return found.view(noisy.shape).float(), state

    def error(denoiser):
        cond = class_cond(test.label)
        return float(forcing_loss(denoiser, model.schedule, test.x, cond=cond,
                                  generator=torch.Generator().manual_seed(0))[0])

    with torch.no_grad():
        mine, gaussian = error(model.denoiser), error(Gaussian())
    assert mine < 0.8 * gaussian, (mine, gaussian)


def test_draws_depend_on_the_seed_and_their_place_alone(model):
    x = draw(model, LABELS[:40], seed=5)
    assert torch.equal(x, draw(model, LABELS[:40], seed=5))
    assert not torch.equal(x, draw(model, LABELS[:40], seed=6))
    torch.testing.assert_close(draw(model, LABELS[:7], seed=5), x[:7], rtol=1e-4, atol=1e-4)
    stochastic = draw(model, LABELS[:40], seed=5, eta=1.0, order=1)
    torch.testing.assert_close(draw(model, LABELS[:7], seed=5, eta=1.0, order=1), stochastic[:7], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(x, stochastic, atol=0.1)


def test_guidance_by_class(model):
    assert guided_by_class(model, 1.0) is model.denoiser
    plain = draw(model, LABELS[:8], seed=1, steps=4)
    null = class_cond(torch.tensor([10]))
    same = classifier_free(model.denoiser, 1.0, null)
    torch.testing.assert_close(draw(model._replace(denoiser=same), LABELS[:8], seed=1, steps=4), plain, rtol=1e-4,
                               atol=1e-4)
    assert not torch.allclose(draw(model, LABELS[:8], seed=1, steps=4, scale=3.0), plain, atol=0.05)
    with pytest.raises(ValueError, match=r"0\.\.9, or be 10, the null class"):
        draw(model, torch.tensor([11]))


def test_what_is_no_image_model():
    with pytest.raises(CheckpointError, match="no image model of named classes"):
        load_model("maze2d-umaze")
    with pytest.raises(CheckpointError, match="neither a checkpoint"):
        load_model("numerals")


def test_the_shipped_model_is_small_and_says_how_it_was_made():
    for name, most in (("digits", 5e6), ("digits-classifier", 1e6)):
        assert sum(file.stat().st_size for file in (PRETRAINED / name).iterdir()) < most
    assert load("digits").layout["digest"]
    about = json.loads((PRETRAINED / "digits" / "state.json").read_text())["extra"]
    assert about["command"].startswith("dforce train image")
