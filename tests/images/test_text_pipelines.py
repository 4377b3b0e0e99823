"""Pipelines that draw from text: latents as diffusers' own, records that replay, and what is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline

from dforce.core.noise import Noise
from dforce.images.pipeline import load_pipeline

PROMPTS = ["a cat", "two dogs"]


def test_its_ode_is_that_of_diffusers(sd_folder, capsys) -> None:
    pipeline = load_pipeline(sd_folder)
    assert "PNDMScheduler is sampled as the DDIMScheduler" in capsys.readouterr().out
    pipe = DiffusionPipeline.from_pretrained(sd_folder, local_files_only=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    start = Noise(4)(0, torch.arange(1), torch.empty(2, 1, *pipeline.shape), salt=1)[:, 0]
    how = {"num_inference_steps": 4, "guidance_scale": 5.0, "eta": 0.0, "latents": start}
    expected = pipe(PROMPTS, output_type="latent", **how).images
    x = pipeline.sampler(4, guidance=5.0, eta=0.0).tokens(2, pipeline.encode(PROMPTS), Noise(4))
    assert float((x[:, 0] - expected).abs().max() / expected.abs().max()) < 1e-4
    torch.testing.assert_close(pipeline.decode(x)[:, 0] / 2 + 0.5, pipe(PROMPTS, output_type="pt", **how).images,
                               rtol=0, atol=1e-4)


def test_prompts_are_texts(sd_folder) -> None:
    pipeline = load_pipeline(sd_folder)
    for wrong in ("a cat", [3], []):
        with pytest.raises(ValueError, match="list of at least one text"):
            pipeline.encode(wrong)
