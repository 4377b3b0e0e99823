"""Pipelines: a diffusers folder samples as diffusers does and is recorded; an image model is one too."""

from __future__ import annotations

import socket

import pytest
import torch

from dforce.align import replay
from dforce.core.noise import Noise
from dforce.images import class_cond, draw, load_model
from dforce.images.model import pipeline_of
from dforce.images.pipeline import from_unet

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(params=[{"prediction_type": "epsilon"}, {"prediction_type": "v_prediction"},
                        {"prediction_type": "sample"}, {"set_alpha_to_one": False}], ids=str)
def folder(request, tmp_path):
    return written(tmp_path, **request.param)


def written(folder, *, classes=3, **scheduler):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=classes)
    unet.save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(**{"clip_sample": False, "steps_offset": 1, **scheduler}).save_pretrained(
        folder / "scheduler")
    return folder


def test_its_ode_is_ddim_of_diffusers(folder) -> None:
    pipeline, steps, label = from_unet(folder), 8, torch.tensor([0, 2])
    assert pipeline.shape == (3, 8, 8)
    found = pipeline.sampler(steps, eta=0.0).tokens(2, pipeline.encode([0, 2]), Noise(4))
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    x = Noise(4)(0, torch.arange(1), torch.empty(2, 1, 3, 8, 8), salt=1)[:, 0]
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(x, t, label).sample, t, x, eta=0.0).prev_sample
    torch.testing.assert_close(found[:, 0], x, rtol=1e-4, atol=1e-4)
    assert pipeline.decode(5 * found).abs().max() <= 1


def test_a_trace_through_it_replays(folder) -> None:
    pipeline = from_unet(folder)
    trace = pipeline.sampler(5).record(2, pipeline.encode([1, 1]), Noise(0))
    again = replay(trace, pipeline.denoiser, pipeline.schedule)
    torch.testing.assert_close(again.log_prob, again.old, rtol=0, atol=0.05)
    assert (again.dims[:, :-1] == 3 * 8 * 8).all()


def test_what_it_does_not_reproduce_is_refused_by_name(tmp_path, monkeypatch) -> None:
    def asked(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    for name, scheduler in (("clip_sample", {"clip_sample": True}), 
                            ("thresholding", {"clip_sample": False, "thresholding": True}),
                            ("timestep_spacing", {"timestep_spacing": "linspace", "steps_offset": 0})):
        with pytest.raises(ValueError, match=name):
            from_unet(written(tmp_path / name, **scheduler))
    for missing in (tmp_path / "nothing", "google/ddpm-cat-256"):
        with pytest.raises(OSError, match="no folder"):
            from_unet(missing)
    plain = from_unet(written(tmp_path / "plain", classes=None))
    assert plain.encode(["a", "b"]) is None and plain.sampler(2).tokens(2, None, Noise(0)).shape == (2, 1, 3, 8, 8)
    with pytest.raises(ValueError, match="without a prompt"):
        plain.sampler(2, guidance=3.0)


def test_an_image_model_is_a_pipeline() -> None:
    model = load_model("digits")
    pipeline, label = pipeline_of(model), torch.tensor([3, 7])
    found = pipeline.sampler(6, guidance=2.0, eta=0.0, order=2).tokens(2, class_cond(label), Noise(5))
    assert torch.equal(found, draw(model, label, seed=5, steps=6, scale=2.0))
