"""Pipelines that draw from text: latents as diffusers' own, records that replay, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from dforce.align import replay
from dforce.core.noise import Noise
from dforce.images.pipeline import load_pipeline
from dforce.nets.diffusers import image_of_patches, patches_of
from tests.images.conftest import flux, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

PROMPTS, SIZE, STEPS, SCALE = ["a cat", "two dogs"], (16, 16), 3, 3.5


def sampled_by_diffusers(pipe, start, call=None, **more):
    """Latents and images in 0..1 of diffusers' own pipeline from `start`, its scheduler turned to DDIM; call: more."""
    flow = "FlowMatch" in type(pipe.scheduler).__name__
    scheduler = pipe.scheduler if flow else DDIMScheduler.from_config(
        pipe.scheduler.config, clip_sample=False, timestep_spacing="leading")
    pipe = type(pipe)(**{**pipe.components, "scheduler": scheduler}, **more)
    pipe.set_progress_bar_config(disable=True)
    is_flux, is_pixart = ("Flux" in type(pipe).__name__), ("PixArt" in type(pipe).__name__)
    how = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "latents": patches_of(start) if is_flux else start,
           "height": SIZE[0], "width": SIZE[1], **({} if flow else {"eta": 0.0}),
           **({"use_resolution_binning": False} if is_pixart else {}), **(call or {})}
    x = pipe(PROMPTS, output_type="latent", **how).images
    return image_of_patches(x, start.shape[-2]) if is_flux else x, pipe(PROMPTS, output_type="pt", **how).images


def start_of(pipeline, rows=2):
    return Noise(4)(0, torch.arange(1), torch.empty(rows, 1, *pipeline.shape), salt=1)[:, 0]


def largest_ratio(pipeline) -> float:
    sampler = pipeline.sampler(4, guidance=2.0)
    trace = sampler.record(2, pipeline.encode(PROMPTS), Noise(1))
    again = replay(trace, sampler.denoiser, sampler.schedule)
    return float((again.log_prob - again.old).exp().sub(1).abs().max())


def test_its_ode_is_that_of_diffusers_and_a_record_replays(any_pipe, capsys) -> None:
    pipeline = load_pipeline(any_pipe, size=SIZE)
    assert ("is sampled as the DDIMScheduler" in capsys.readouterr().out) == hasattr(any_pipe.scheduler, "betas")
    expected, images = sampled_by_diffusers(any_pipe, start_of(pipeline))
    x = pipeline.sampler(STEPS, guidance=SCALE, eta=0.0).tokens(2, pipeline.encode(PROMPTS), Noise(4))
    assert float((x[:, 0] - expected).abs().max() / expected.abs().max()) < 1e-4
    torch.testing.assert_close(pipeline.decode(x)[:, 0] / 2 + 0.5, images, rtol=0, atol=1e-4)
    assert largest_ratio(pipeline) < 1e-3
    static = pipeline.encode(PROMPTS)["static"]
    assert set(static) == set(pipeline.null["static"])
    for name in static:
        with pytest.raises(ValueError, match=f"needs cond.*{name}"):
            pipeline.denoiser.init_state(2, {"static": {key: value for key, value in static.items() if key != name}})


def test_nothing_asks_a_network(sd_folder, monkeypatch) -> None:
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *_: pytest.fail("a socket was opened"))
    pipeline = load_pipeline(sd_folder, dtype=torch.bfloat16, negative="a dog")
    assert pipeline.shape == (4, 8, 8) and pipeline.null["static"]["text"].shape == (1, 16, 16)
    assert next(pipeline.denoiser.parameters()).dtype == torch.bfloat16
    x = pipeline.sampler(2, guidance=3.0).tokens(1, pipeline.encode(["a cat"]), Noise(0))
    assert x.dtype == torch.float32 and pipeline.decode(x).shape == (1, 1, 3, 16, 16)
    with pytest.raises(FileNotFoundError, match="no folder stabilityai/sd.*hub=True"):
        load_pipeline("stabilityai/sd")


def test_the_gradient_goes_through_decoding_in_parts(sd_pipe) -> None:
    decode = load_pipeline(sd_pipe, size=SIZE).decode
    x = torch.randn(5, 1, *sd_pipe.vae.encode(torch.zeros(1, 3, *SIZE)).latent_dist.mode().shape[1:])
    grads = []
    for at_once in (2, 5):
        decode.at_once, leaf = at_once, x.clone().requires_grad_()
        image = decode(leaf)
        image.square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)
    assert grads[0].abs().max() > 0 and all(not weight.requires_grad for weight in sd_pipe.vae.parameters())
    with pytest.raises(ValueError, match="takes latents"):
        decode(x[:, :, :1])


def spoilt(pipe, **parts):
    return type(pipe)(**{**pipe.components, **parts}, requires_safety_checker=False)


def test_what_is_not_reproduced_is_refused_in_one_line(sd_folder, tmp_path) -> None:
    from diffusers import LCMScheduler, StableDiffusionInpaintPipeline

    pipe = DiffusionPipeline.from_pretrained(sd_folder, local_files_only=True)
    unet = pipe.unet
    wrong = {
        "9 channels.*inpainting": spoilt(pipe, unet=type(unet).from_config(unet.config, in_channels=9)),
        "a variance": spoilt(pipe, unet=type(unet).from_config(unet.config, out_channels=8)),
        "no text_encoder": spoilt(pipe, text_encoder=None),
        "LCMScheduler is not reproduced": spoilt(pipe, scheduler=LCMScheduler()),
        "StableDiffusionInpaintPipeline is none": StableDiffusionInpaintPipeline(
            **pipe.components, requires_safety_checker=False),
    }

    def changed(name, change):
        shutil.copytree(sd_folder, tmp_path / name)
        change(tmp_path / name)
        return tmp_path / name

    def indexed(folder, **entries):
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, **entries}))

    weights = "unet/diffusion_pytorch_model.safetensors"
    wrong |= {
        "unet is missing": changed("part", lambda folder: shutil.rmtree(folder / "unet")),
        "cannot load the pipeline": changed("weights", lambda folder: (folder / weights).unlink()),
        "cannot load the pipeline in .*cut": changed("cut", lambda folder: (folder / weights).write_bytes(
            (sd_folder / weights).read_bytes()[:-100])),
        "model_index.json cannot be read": changed("index", lambda folder: (folder / "model_index.json").unlink()),
        "holds a KandinskyPipeline": changed("kind", lambda folder: indexed(folder, _class_name="KandinskyPipeline")),
        "takes its unet from 'os'": changed("code", lambda folder: indexed(folder, unet=["os", "system"])),
    }
    for match, source in wrong.items():
        with pytest.raises(ValueError, match=match) as caught:
            load_pipeline(source)
        assert len(str(caught.value).splitlines()) == 1
    for match, more in (("multiples of 2 pixels", {"size": (15, 16)}), ("2000.*1000", {})):
        with pytest.raises(ValueError, match=match):
            load_pipeline(pipe, **more).levels(2000)
    for prompts in ("a cat", [3], []):
        with pytest.raises(ValueError, match="list of at least one text"):
            load_pipeline(pipe).encode(prompts)


MEMBERS = ["v_prediction", "negative", "t5", "schnell", "true guidance", "dynamic", "without zeroes"]


@pytest.mark.slow
@pytest.mark.parametrize("change", MEMBERS)
def test_other_members_of_a_family(change, tmp_path) -> None:
    """v_prediction of SD 2, T5 of SD3, Flux without embedded guidance, dynamic shifting of SD3, SDXL's own null."""
    more, call, scale, negative = {}, {}, SCALE, None
    match change:
        case "v_prediction":
            pipe = stable_diffusion(tmp_path, DDIMScheduler(
                prediction_type="v_prediction", clip_sample=False, steps_offset=1, set_alpha_to_one=False))
        case "negative":
            pipe, negative = stable_diffusion_xl(tmp_path), "a bird"
            call = {"negative_prompt": [negative] * 2}
        case "t5":
            pipe = stable_diffusion_3(tmp_path, third=True)
        case "schnell":
            pipe, scale = flux(tmp_path, guidance=False), 1.0  # diffusers guides it by a negative prompt alone
        case "true guidance":
            pipe, negative = flux(tmp_path, guidance=False), "a bird"
            call = {"negative_prompt": [negative] * 2, "true_cfg_scale": SCALE}
        case "dynamic":
            pipe = stable_diffusion_3(tmp_path)
            pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        case _:
            pipe, more = stable_diffusion_xl(tmp_path), {"force_zeros_for_empty_prompt": False}
            pipe.register_to_config(**more)
    pipeline = load_pipeline(pipe, size=SIZE, negative=negative)
    expected, _ = sampled_by_diffusers(pipe, start_of(pipeline), call, **more)
    x = pipeline.sampler(STEPS, guidance=scale, eta=0.0).tokens(2, pipeline.encode(PROMPTS), Noise(4))
    assert float((x[:, 0] - expected).abs().max() / expected.abs().max()) < 1e-4


@pytest.mark.slow
def test_a_folder_is_read_as_its_pipeline(any_pipe, tmp_path) -> None:
    any_pipe.save_pretrained(tmp_path)
    one, other = (load_pipeline(source, size=SIZE) for source in (any_pipe, tmp_path))
    drawn = [each.decode(each.sampler(2, guidance=SCALE).tokens(2, each.encode(PROMPTS), Noise(4)))
             for each in (one, other)]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-5)
