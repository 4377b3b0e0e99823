"""Tiny pipelines of diffusers with random weights, written once and without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

LETTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)]
BLOCKS = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
          "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
WIDTH = 16  # of the text encoder


def tokenizer(folder: Path, length: int = 16):
    """A CLIPTokenizer of single letters."""
    from transformers import CLIPTokenizer

    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length)


def clip_config(**more):
    from transformers import CLIPTextConfig

    return CLIPTextConfig(vocab_size=2 + 2 * len(LETTERS), hidden_size=WIDTH, intermediate_size=32,
                          num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16, bos_token_id=0,
                          eos_token_id=1, pad_token_id=1, **more)


def autoencoder(channels: int = 4, **more):
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4,
                         down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
                         sample_size=16, **more)


def text_unet(**more):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{
        "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": WIDTH, "attention_head_dim": 2, **BLOCKS, **more})


def stable_diffusion(folder: Path, **scheduler):
    """StableDiffusionPipeline of 16x16 pixels, latents 4x8x8, with a PNDM scheduler unless another is given."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    path = scheduler.pop("path", PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1,
        skip_prk_steps=True, **scheduler))
    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=CLIPTextModel(clip_config()), tokenizer=tokenizer(folder / "words"),
        unet=text_unet(), scheduler=path, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 1.x."""
    folder = tmp_path_factory.mktemp("sd")
    stable_diffusion(folder).save_pretrained(folder / "pipeline")
    return folder / "pipeline"
