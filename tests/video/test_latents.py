"""Latents by AutoencoderKL: equal to diffusers' own, scaled, in parts; what is refused; trained on by `train video`."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("diffusers")
from diffusers import AutoencoderKL

from dforce.video import latents as module
from dforce.video.latents import Latents, load_latents

TINY = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": (8, 8), "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1}


@pytest.fixture
def folder(tmp_path):
    """A tiny random autoencoder that halves the sides, with a shift and a scale."""
    torch.manual_seed(0)
    vae = AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8), norm_num_groups=4,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                        layers_per_block=1, scaling_factor=0.5, shift_factor=0.25)
    vae.save_pretrained(tmp_path / "kl")
    return tmp_path / "kl"


def test_channels_have_a_mean_and_a_std_each(tmp_path):
    """As diffusers' pipelines: (z - latents_mean) scaling_factor / latents_std, and back before decoding."""
    mean, std = [-1.5, 0.5, 0.25, 2.0], [8.0, 0.5, 1.0, 2.0]
    AutoencoderKL(**TINY, scaling_factor=0.5, latents_mean=mean, latents_std=std).save_pretrained(tmp_path / "kl")
    latents, vae, x = load_latents(tmp_path / "kl"), AutoencoderKL.from_pretrained(tmp_path / "kl").eval(), clip(1, 1)
    with torch.no_grad():
        z = vae.encode(x[0]).latent_dist.mode()
        wanted = (z - torch.tensor(mean)[:, None, None]) * 0.5 / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(latents.encode(x)[0], wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(latents.decode(wanted[None])[0], vae.decode(z).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("setting", [{"latents_mean": [0.0] * 4}, {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3},
                                     {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "shift_factor": 0.5}])
def test_half_a_scaling_of_latents_is_refused(setting):
    with pytest.raises(ValueError, match="latents_mean and latents_std"):
        Latents(AutoencoderKL(**TINY, **setting))


def clip(batch=2, time=3):
    return 2 * torch.rand(batch, time, 3, 8, 8, generator=torch.Generator().manual_seed(1)) - 1


def test_it_is_diffusers_own_scaled_and_shifted(folder):
    latents, vae, x = load_latents(folder), AutoencoderKL.from_pretrained(folder).eval(), clip()
    z = latents.encode(x)
    assert z.shape == (2, 3, *latents.event_shape((3, 8, 8))) == (2, 3, 4, 4, 4)
    with torch.no_grad():
        for b in range(2):
            for t in range(3):
                wanted = (vae.encode(x[b, t][None]).latent_dist.mode()[0] - 0.25) * 0.5
                torch.testing.assert_close(z[b, t], wanted, rtol=1e-4, atol=1e-5)
                back = vae.decode(z[b, t][None] / 0.5 + 0.25).sample[0]
                torch.testing.assert_close(latents.decode(z)[b, t], back, rtol=1e-4, atol=1e-5)


def test_parts_make_no_difference(folder, monkeypatch):
    latents, x = load_latents(folder), clip(3, 5)
    whole = latents.encode(x)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    torch.testing.assert_close(latents.encode(x), whole, rtol=1e-4, atol=1e-5)


def test_draws_scatter_about_the_mean(folder):
    latents, x = load_latents(folder), clip(1, 1)
    mean = latents.encode(x)
    draws = [latents.encode(x, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], mean) and not mean.requires_grad


def test_a_pipeline_folder_is_one_too(folder, tmp_path):
    whole = tmp_path / "pipeline"
    whole.mkdir()
    folder.rename(whole / "vae")
    assert load_latents(whole).channels == 4


def test_what_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no config.json"):
        load_latents(tmp_path / "nowhere")
    latents = load_latents(folder)
    with pytest.raises(ValueError, match=r"3 channels whose sides are multiples of 2, got \(3, 7, 8\)"):
        latents.encode(clip()[..., :7, :])
    with pytest.raises(ValueError, match="latents of 4 channels"):
        latents.decode(torch.zeros(1, 1, 3, 4, 4))
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cannot load the autoencoder"):
        load_latents(folder)
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny"}))
    with pytest.raises(ValueError, match="holds a AutoencoderTiny"):
        load_latents(folder)


@pytest.mark.slow
def test_a_world_model_is_trained_on_latents(folder, tmp_path, monkeypatch, capsys):
    from dforce.train.checkpoint import load
    from tests.cli.test_train_video import clips, train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))
    data = clips(tmp_path / "data", count=1)
    assert train(f"data={data}", "out=run", "fit.steps=2", f"latents={folder}") == 0, capsys.readouterr().err
    layout = load("run").layout
    assert layout["event_shape"] == [4, 4, 4] and layout["latents"] == str(folder) and layout["size"] == [8, 8]
    assert train(f"data={data}", "out=no", f"latents={folder}", "stack=2") == 2
    assert "takes stack=1" in capsys.readouterr().err
