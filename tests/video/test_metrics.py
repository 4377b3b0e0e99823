"""Metrics of video: equal to other libraries, and to what theory says of known laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dforce.core.frechet import frechet
from dforce.video.metrics.features import (
    clip_features,
    fed_and_seen,
    kappa,
    load_features,
    pairs_of,
    save_features,
    train_features,
    train_probe,
    transitions,
)
from dforce.video.metrics.published import psnr, ssim


def random(*shape, seed=0, low=-1.0, high=1.0):
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def clips(step, *, batch=16, time=8, size=8, frozen=False):
    """A bright square on a ring, one pixel to the left or to the right a frame, as the action says."""
    g = torch.Generator().manual_seed(step)
    actions = torch.randint(0, 2, (batch, time), generator=g)
    move = torch.where(actions == 1, 1, -1)
    move[:, 0] = torch.randint(size, (batch,), generator=g)
    place = (move * 0 + move[:, :1] if frozen else move.cumsum(1)) % size
    row = torch.randint(size - 1, (batch, 1, 1), generator=g)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    near = ((x - place[..., None, None]) % size < 2) & ((y - row[..., None]) % size < 2)
    one_hot = torch.nn.functional.one_hot(actions, 2).float()
    one_hot[:, 0] = 0  # nothing led to the first frame
    return (2.0 * near - 1)[:, :, None], one_hot


def test_psnr_and_ssim_equal_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    x, y = random(3, 2, 3, 20, 17), random(3, 2, 3, 20, 17, seed=1)
    y = 0.7 * x + 0.3 * y
    for i in range(3):
        for t in range(2):
            a, b = (each[i, t].double().numpy() for each in (x, y))
            wanted = metrics.structural_similarity(a, b, data_range=2.0, channel_axis=0, gaussian_weights=True,
                                                   sigma=1.5, use_sample_covariance=False)
            assert float(ssim(x, y)[i, t]) == pytest.approx(wanted, abs=1e-9)
            assert float(psnr(x, y)[i, t]) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=2.0))
    assert ssim(x, x).shape == (3, 2) and torch.allclose(ssim(x, x), torch.ones(3, 2, dtype=torch.float64))
    assert psnr(x, x).isinf().all()


def test_metrics_refuse_what_cannot_be_compared():
    x = random(1, 3, 16, 16)
    with pytest.raises(ValueError, match="must have one shape"):
        psnr(x, x[..., :-1])
    with pytest.raises(ValueError, match="too small for it, use psnr"):
        ssim(x[..., :8, :8], x[..., :8, :8])
    with pytest.raises(ValueError, match="N, M >= 2"):
        frechet(torch.ones(1, 3), torch.ones(5, 3))
    with pytest.raises(ValueError, match="did the samples diverge"):
        frechet(torch.full((4, 3), math.nan), torch.ones(5, 3))


def test_frechet_equals_the_formula_with_scipys_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    a, b = random(50, 6).double(), 1 + 2 * random(40, 6, seed=1).double() @ random(6, 6, seed=2).double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = np.cov(a.numpy().T), np.cov(b.numpy().T)
    wanted = float(mean) + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet(a, b) == pytest.approx(wanted, rel=1e-9)
    assert frechet(b, a) == pytest.approx(wanted, rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-8)


def test_frechet_of_few_samples_of_many_features_and_of_one_feature():
    """Singular covariances, and the closed form in one dimension: (m - n)^2 + (s - t)^2."""
    few = random(5, 20)
    assert frechet(few, few) == pytest.approx(0, abs=1e-6)
    assert frechet(few, few + 1) == pytest.approx(20, rel=1e-6)
    a, b = random(100, 1).double(), 3 + 2 * random(100, 1, seed=3).double()
    wanted = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet(a, b) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.slow
def test_features_tell_motion_apart(tmp_path):
    """Frozen clips show the same single frames: only what features say of pairs can tell them from moving ones."""
    encoder = train_features(lambda step: clips(step)[0], steps=60, width=8)
    real, other = (torch.cat([clips(100 * k + i)[0] for i in range(12)]) for k in (10, 20))
    frozen = torch.cat([clips(3000 + i, frozen=True)[0] for i in range(12)])
    features = clip_features(encoder, real)
    assert features.shape == (192, 7, 8)
    assert features.flatten(0, 1).mean(0).abs().max() < 0.3 and (features.flatten(0, 1).std(0) - 1).abs().max() < 0.3
    floor = frechet(features.flatten(0, 1), clip_features(encoder, other).flatten(0, 1))
    assert frechet(features.flatten(0, 1), clip_features(encoder, frozen).flatten(0, 1)) > 5 * floor
    again = load_features(save_features(encoder, tmp_path / "features.safetensors"))
    assert torch.equal(clip_features(again, real[:2]), clip_features(encoder, real[:2]))
    (tmp_path / "other").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no features"):
        load_features(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no file of features"):
        load_features(tmp_path / "none")


@pytest.mark.slow
def test_the_probe_sees_what_was_told_and_chance_is_zero():
    probe = train_probe(clips, 2, steps=80)
    frames, actions = clips(5000, batch=64)
    told, seen = fed_and_seen(probe, frames, actions)
    assert len(told) == 64 * 7 and kappa(told, seen, 2) > 0.95
    unrelated = clips(6000, batch=64)[1]
    assert abs(kappa(*fed_and_seen(probe, frames, unrelated), 2)) < 0.15


def test_kappa_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    g = torch.Generator().manual_seed(0)
    told = torch.randint(3, (200,), generator=g)
    seen = torch.where(torch.rand(200, generator=g) < 0.6, told, torch.randint(3, (200,), generator=g))
    assert kappa(told, seen, 3) == pytest.approx(metrics.cohen_kappa_score(told, seen))
    assert kappa(told, told, 3) == 1
    assert math.isnan(kappa(told[:0], seen[:0], 3)) and math.isnan(kappa(0 * told, 0 * told, 3))


def test_transitions_leave_null_actions_out():
    frames, actions = clips(0, batch=2, time=3)
    actions[1, 2] = 0
    pairs, label = transitions(frames, actions)
    assert len(pairs) == 3 and torch.equal(pairs[:2], pairs_of(frames[:1]))
    numbers = torch.tensor([[-1, 0, 1], [-1, 1, -1]])
    assert torch.equal(transitions(frames, numbers)[1], torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match="one a frame"):
        transitions(frames, actions[:, 1:])
