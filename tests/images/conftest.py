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


def stable_diffusion(folder: Path, scheduler=None):
    """StableDiffusionPipeline of 16x16 pixels, latents 4x8x8, with a PNDM scheduler unless another is given."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(0)
    scheduler = scheduler or PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, set_alpha_to_one=False, steps_offset=1,
        skip_prk_steps=True)
    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=CLIPTextModel(clip_config()), tokenizer=tokenizer(folder / "words"),
        unet=text_unet(), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False)


def two_encoders(folder: Path):
    """The text encoders of Stable Diffusion XL and 3, and their tokenizers."""
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    first = CLIPTextModel if folder.name == "xl" else CLIPTextModelWithProjection
    return {"text_encoder": first(clip_config(projection_dim=WIDTH)), "tokenizer": tokenizer(folder / "words"),
            "text_encoder_2": CLIPTextModelWithProjection(clip_config(projection_dim=WIDTH)),
            "tokenizer_2": tokenizer(folder / "words")}


def t5(width: int = WIDTH):
    """A tiny T5 encoder and its tokenizer of single letters."""
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS)]
    encoder = T5EncoderModel(T5Config(vocab_size=len(vocab), d_model=width, d_kv=8, d_ff=16, num_layers=1,
                                      num_heads=2, pad_token_id=0, eos_token_id=1))
    return encoder, T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=64)


def stable_diffusion_xl(folder: Path):
    """StableDiffusionXLPipeline of 16x16 pixels with an Euler scheduler."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(1)
    unet = text_unet(cross_attention_dim=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=8,
                     projection_class_embeddings_input_dim=6 * 8 + WIDTH, transformer_layers_per_block=(1, 2))
    path = EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1,
                                  timestep_spacing="leading")
    return StableDiffusionXLPipeline(vae=autoencoder(), unet=unet, scheduler=path, add_watermarker=False,
                                     **two_encoders(folder / "xl"))


def stable_diffusion_3(folder: Path, *, third: bool = False):
    """StableDiffusion3Pipeline of 16x16 pixels, shift 3; third: with T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(2)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=2 * WIDTH, caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH, pos_embed_max_size=8)
    encoder, words = t5(2 * WIDTH) if third else (None, None)
    return StableDiffusion3Pipeline(
        vae=autoencoder(shift_factor=0.06), transformer=transformer, text_encoder_3=encoder, tokenizer_3=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), **two_encoders(folder))


def flux(folder: Path, *, guidance: bool = True):
    """FluxPipeline with dynamic shifting; draw 16x16 pixels, for its own size is 1024."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    torch.manual_seed(3)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=guidance, axes_dims_rope=(2, 2, 4))
    encoder, words = t5()
    return FluxPipeline(
        vae=autoencoder(shift_factor=0.1), transformer=transformer, text_encoder=CLIPTextModel(clip_config()),
        tokenizer=tokenizer(folder / "words"), text_encoder_2=encoder, tokenizer_2=words,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True))


def pixart(folder: Path):
    """PixArtSigmaPipeline of 16x16 pixels, whose network also predicts a variance, with a DPM-Solver."""
    from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

    torch.manual_seed(4)
    transformer = PixArtTransformer2DModel(
        sample_size=8, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        cross_attention_dim=16, caption_channels=WIDTH)
    encoder, words = t5()
    return PixArtSigmaPipeline(tokenizer=words, text_encoder=encoder, vae=autoencoder(), transformer=transformer,
                               scheduler=DPMSolverMultistepScheduler(beta_schedule="scaled_linear"))


def written(make, tmp_path_factory: pytest.TempPathFactory, name: str) -> Path:
    folder = tmp_path_factory.mktemp(name)
    make(folder).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 1.x."""
    return written(stable_diffusion, tmp_path_factory, "sd")


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion 3 without T5."""
    return written(stable_diffusion_3, tmp_path_factory, "sd3")


@pytest.fixture(scope="session", params=["sd", "xl", "sd3", "flux", "pixart"])
def any_pipe(request, tmp_path_factory: pytest.TempPathFactory):
    """A tiny pipeline object of each family."""
    makers = {"sd": stable_diffusion, "xl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux,
              "pixart": pixart}
    return makers[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def sd_pipe(tmp_path_factory: pytest.TempPathFactory):
    """A tiny Stable Diffusion 1.x as an object."""
    return stable_diffusion(tmp_path_factory.mktemp("sd"))
