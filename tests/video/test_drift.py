"""Drift: real video shows none, broken video shows its kind; physics of balls; metrics with weights of one's own."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from dforce.core.frechet import frechet
from dforce.data.generate.balls import balls
from dforce.data.pixels import to_uint8
from dforce.report.rows import check_row
from dforce.video.metrics.drift import (
    broken_at,
    distances,
    drift,
    floor,
    frechet_interval,
    reference,
    spans_of,
    statistics,
    windows_of,
    worst_span,
)
from dforce.video.metrics.features import PairEncoder
from dforce.video.metrics.measure import RowMaker, measure_drift, picture
from dforce.video.metrics.published import ALEXNET, I3D, Lpips, clips_of, load_lpips
from dforce.video.truth import physics


def clips(count, frames, seed):
    return balls(count, frames, 16, generator=torch.Generator().manual_seed(seed)).frames


def stored(frames):
    """As a record holds them: uint8 [T, B, H, W, C]."""
    return to_uint8(frames).swapaxes(0, 1)


@pytest.fixture(scope="module")
def of():
    torch.manual_seed(0)
    encoder = PairEncoder((1, 16, 16), width=6, channels=4).eval().requires_grad_(False)
    return reference(encoder, clips(24, 40, 0), clips(24, 40, 1), window=10)


def test_statistics_in_closed_form():
    frames = torch.zeros(1, 3, 1, 8, 8)
    frames[0, 1] = 1.0                                                         # white
    frames[0, 2, 0, :, ::2], frames[0, 2, 0, :, 1::2] = -0.5, 0.5              # stripes
    found = statistics(frames)
    assert found["brightness"][0].tolist() == [0.5, 1.0, 0.5]
    assert found["contrast"][0, :2].tolist() == [0, 0] and found["contrast"][0, 2] == pytest.approx(0.5, rel=0.01)
    assert math.isnan(found["change"][0, 0]) and found["change"][0, 1] == 1 and found["change"][0, 2] == 1
    assert found["saturated"][0].tolist() == [0, 1, 0]
    assert found["detail"][0, 0] == 0 and found["detail"][0, 2] == pytest.approx(2)  # |-4 +-2 +-2| / 2 on every pixel
    assert windows_of(torch.tensor([[math.nan, 2.0, 3.0, 5.0, 7.0]]), 2).tolist() == [[2.0, 4.0]]


def test_real_video_does_not_drift(of):
    real = stored(clips(12, 100, 2))
    found = drift(real, of)
    assert (found.broken == -1).all() and not found.frozen.any() and found.z.shape == (12, 10)
    least, spans = floor(of, 12, 30), [(0, 30), (70, 100)]
    for each in distances(real, of, spans):
        assert each.n == 12 and each.low <= each.value <= each.high
        assert each.value < 4 * least.value


def test_each_kind_of_ruin_is_seen(of):
    real = clips(6, 100, 3)
    frozen, bright, noisy = real.clone(), real.clone(), real.clone()
    frozen[:, 50:] = real[:, 49:50]
    bright[:, 60:] = 1.0
    noisy[:3, 30:] = torch.randn(3, 70, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = drift(stored(frozen), of)
    assert found.frozen[:, :5].sum() == 0 and found.frozen[:, 5:].all()
    assert (drift(stored(bright), of).broken == 60).all()
    assert drift(stored(noisy), of).broken.tolist() == [30, 30, 30, -1, -1, -1]
    first, last = distances(stored(bright), of, [(0, 50), (70, 100)])
    assert last.value > 20 * first.value


def test_a_rollout_breaks_where_two_windows_in_a_row_are_beyond():
    z = torch.tensor([[0.0, 9, 0, 0, 0], [0, 9, 9, 0, 0], [0, 0, 0, 0, 9], [0, 0, 0, math.nan, 9]])
    assert broken_at(z, 10).tolist() == [-1, 10, -1, 30]
    assert broken_at(z[:, :1], 10).tolist() == [-1] * 4


def test_spans_are_those_of_the_tables():
    assert spans_of(1000) == [(0, 100), (400, 500), (900, 1000)]
    assert spans_of(100) == [(0, 100)] and spans_of(40) == [(0, 40)]
    assert spans_of(200) == [(0, 100), (100, 200)]
    for frames in range(1, 700, 7):
        spans = spans_of(frames)
        assert spans[0][0] == 0 and spans[-1][1] == frames if frames >= 200 else spans[0][0] == 0
        assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))


@pytest.mark.slow
def test_the_jackknife_interval_covers():
    """Of a distance whose expectation is known by many clips: clips are what varies, not their frames."""
    g = torch.Generator().manual_seed(0)
    to = torch.randn(4000, 2, generator=g)

    def drawn(count):
        return torch.randn(count, 1, 2, generator=g) + 0.5 + 0.1 * torch.randn(count, 10, 2, generator=g)

    truth = frechet(drawn(4000).flatten(0, 1), to)
    inside = sum(each.low <= truth <= each.high for each in (frechet_interval(drawn(20), to) for _ in range(60)))
    assert inside >= 51                                                        # 95% of 60 is 57
    assert math.isnan(frechet_interval(drawn(2), to).low)


@pytest.mark.slow
def test_measured_rows_are_rows_of_results(of, tmp_path):
    made = stored(clips(5, 60, 4))
    found = measure_drift(made, of, RowMaker("balls", "forcing", {"steps": 3}))
    rows = [check_row(row) for row in found.rows]
    assert {row["metric"] for row in rows} >= {"frechet", "frechet / floor", "change / real", "broken off"}
    ratio = next(row for row in rows if row["metric"] == "brightness / real")
    assert ratio["n"] == 5 and 0.9 < ratio["value"] < 1.1
    longer = measure_drift(stored(clips(5, 240, 6)), of, RowMaker("balls", "forcing", {})).rows
    ratios = {row["metric"]: row["value"] for row in longer if row["metric"].endswith("last / first")}
    assert ratios.keys() == {"frechet last / first", "brightness last / first", "change last / first"}
    assert 0.9 < ratios["brightness last / first"] < 1.1 and ratios["frechet last / first"] < 6
    assert len(found.samples) == 5 and json.dumps(found.samples)
    picture(found.drift, of, tmp_path / "drift.png", "drift")
    assert (tmp_path / "drift.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="shorter than one window"):
        drift(made[:5], of)
    with pytest.raises(ValueError, match="choose a smaller window"):
        reference(of.encoder, clips(2, 8, 0), clips(2, 8, 1), window=10)


# --------------------------------------------------------------------------------------------------------- physics

def test_physics_of_true_balls_and_of_false_ones():
    made = balls(8, 60, 16, generator=torch.Generator().manual_seed(5))
    found = physics(made.frames, made.positions)
    assert found["error"].max() < 0.6 and found["error"].mean() < 0.1          # pixels
    assert (found["mass"] - 1).abs().max() < 0.03 and found["residual"].max() < 0.01 and not found["bad"].any()
    free = (made.velocities[:, 1:] == made.velocities[:, :-1]).flatten(2).all(2)   # no bounce in between
    assert (found["speed"][:, 1:][free] - 1).abs().mean() < 0.05
    assert (found["energy"][:, 1:][free].mean() - 1).abs() < 0.1
    slow = physics(made.frames[:, :1].expand_as(made.frames), made.positions)
    assert slow["speed"][:, 1:].max() == 0 and slow["error"][:, -1].mean() > 1
    assert physics(-torch.ones(1, 3, 1, 16, 16))["bad"].all()
    assert physics(torch.randn(1, 3, 1, 16, 16))["bad"].all()
    dim = physics((made.frames + 1) * 0.2 - 1)
    assert (dim["mass"] < 0.25).all() and dim["bad"].all()


# ----------------------------------------------------------------------------------------------- weights of the user

class _Fake(nn.Module):
    """Called as the published I3D is, and answers with what can be checked."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        assert resize and return_features and not rescale and x.shape[1] == 3
        return torch.stack([x.mean(dim=(1, 2, 3, 4)), x[:, :, 0].mean(dim=(1, 2, 3))], 1)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # the published file is a TorchScript
def test_fvd_takes_the_published_torchscript(tmp_path):
    file = tmp_path / "i3d.pt"
    torch.jit.script(_Fake()).save(str(file))
    frames = clips(3, 32, 0)
    features = I3D(file)(clips_of(frames))
    assert features.shape == (6, 2)
    torch.testing.assert_close(features[0], torch.stack([frames[0, :16].mean(), frames[0, 0].mean()]))
    with pytest.raises(FileNotFoundError, match="neither ships nor downloads"):
        I3D(tmp_path / "none.pt")
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no TorchScript"):
        I3D(tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="at least 10 frames"):
        I3D(file)(frames[:, :9])


@pytest.fixture
def alexnet(tmp_path):
    """Files with the names and shapes of torchvision's AlexNet and LPIPS's heads."""
    g = torch.Generator().manual_seed(0)
    weights, heads, channels = {}, {}, 3
    for i, (index, out, kernel, _, _) in enumerate(ALEXNET):
        weights[f"features.{index}.weight"] = torch.randn(out, channels, kernel, kernel, generator=g) / (
            channels * kernel**2) ** 0.5
        weights[f"features.{index}.bias"] = torch.randn(out, generator=g)
        heads[f"lin{i}.model.1.weight"] = torch.rand(1, out, 1, 1, generator=g)
        channels = out
    torch.save(weights, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "alex.pth")
    return [str(tmp_path / "alexnet.pth"), str(tmp_path / "alex.pth")]


def test_lpips_is_the_published_formula(alexnet):
    net = load_lpips(alexnet)
    g = torch.Generator().manual_seed(1)
    x, y = (torch.rand(2, 3, 3, 64, 64, generator=g) * 2 - 1 for _ in range(2))
    assert net(x, x).abs().max() == 0 and (net(x, y) > 0).all() and net(x, y).shape == (2, 3)
    torch.testing.assert_close(net(x, y), net(y, x))
    weights, heads = (torch.load(file, weights_only=True) for file in alexnet)
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(),
        nn.MaxPool2d(3, 2), nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(), nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU())  # torchvision's AlexNet.features
    layers.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
    wanted, a, b = 0, *((v[0] - torch.tensor([[[-0.030]], [[-0.088]], [[-0.188]]])) / torch.tensor(
        [[[0.458]], [[0.448]], [[0.450]]]) for v in (x, y))
    taps = 0
    for layer in layers:
        a, b = layer(a), layer(b)
        if isinstance(layer, nn.ReLU):
            unit = [v / (v.norm(dim=1, keepdim=True) + 1e-10) for v in (a, b)]
            head = heads[f"lin{taps}.model.1.weight"]
            wanted = wanted + nn.functional.conv2d((unit[0] - unit[1]) ** 2, head).mean((1, 2, 3))
            taps += 1
    torch.testing.assert_close(net(x, y)[0], wanted.detach())
    assert net(x[:, :, :1], y[:, :, :1]).shape == (2, 3)                       # grey is shown as grey
    with pytest.raises(ValueError, match="at least 32"):
        net(x[..., :16, :16], y[..., :16, :16])


def test_lpips_of_other_files_is_refused(alexnet, tmp_path):
    with pytest.raises(ValueError, match="do not fit"):
        Lpips(alexnet[1], alexnet[0])
    with pytest.raises(FileNotFoundError, match="leave lpips=null"):
        Lpips(tmp_path / "none", alexnet[1])
    with pytest.raises(ValueError, match="two paths"):
        load_lpips(alexnet[0])
    (tmp_path / "bad").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no weights"):
        Lpips(tmp_path / "bad", alexnet[1])


def test_records_are_uint8_of_frames_in_one_to_one():
    frames = torch.tensor([-2.0, -1, 0, 1, 2]).view(5, 1, 1, 1)
    assert to_uint8(frames).flatten().tolist() == [0, 0, 128, 255, 255] and to_uint8(frames).dtype == np.uint8


def test_draws_that_repeat_have_no_interval_and_the_worst_span_is_found(of):
    few, real = reference(of.encoder, clips(1, 10, 0), clips(1, 10, 1), window=10), stored(clips(4, 350, 2))
    assert math.isnan(floor(few, 4, 10).low) and floor(few, 4, 10).n == 1      # one stretch of one clip, eight times
    assert floor(of, 4, 10).low < floor(of, 4, 10).value < floor(of, 4, 10).high
    real[200:300] = 255
    assert worst_span(real, of) == (200, 300) and worst_span(real[:60], of) == (0, 100)
    rows = {(row["metric"], row["variant"].get("frames")): row for row in measure_drift(
        real, of, RowMaker("balls", "test", {})).rows}
    assert next(iter(rows)) == ("broken off", None) and rows["begins at", "worst 100"]["value"] == 200
    far = {name: rows["frechet / floor", name]["value"] for name in ("0-100", "100-200", "250-350", "worst 100")}
    assert max(far, key=far.__getitem__) == "worst 100"
