"""A Stable Diffusion of 1.4 million weights with the parts of the real one, made of configurations: nothing is loaded.

16 x 16 latents of 4 channels, 32 x 32 pixels. No import of dforce: an environment with another trainer runs it, too.
"""

import io
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image


def tokens(folder: Path) -> None:
    """Files of a CLIP tokenizer that knows single bytes alone: no merges."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves; the others follow
    letters = [chr(byte) for byte in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")


def build(folder: Path, *, channels: tuple[int, int] = (32, 64), seed: int = 0) -> Path:
    """Writes the pipeline to a folder in diffusers' layout and returns the folder; random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    with TemporaryDirectory() as words:
        tokens(Path(words))
        tokenizer = CLIPTokenizer(f"{words}/vocab.json", f"{words}/merges.txt", model_max_length=16)
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=channels, layers_per_block=2, cross_attention_dim=32, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"))
    vae = AutoencoderKL(block_out_channels=(32, 64), latent_channels=4, norm_num_groups=8, sample_size=32,
                        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=len(tokenizer) - 2, eos_token_id=len(tokenizer) - 1,
        pad_token_id=len(tokenizer) - 1))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)
    StableDiffusionPipeline(vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
                            safety_checker=None, feature_extractor=None,
                            requires_safety_checker=False).save_pretrained(folder)
    return folder


ANIMALS = ("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat")


def jpeg_size(images, prompts, metadata):  # type: ignore[no-untyped-def]
    """TRL's kind of reward: images [B, 3, H, W] in 0..1 -> minus the kilobytes of their JPEG files, and metadata."""
    rewards = []
    for pixels in (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        rewards.append(-file.tell() / 1000)
    return torch.tensor(rewards), {}


def animal() -> tuple[str, dict[str, str]]:
    """TRL's kind of prompts: one prompt, drawn by `random`, and its metadata."""
    return f"a {random.choice(ANIMALS)}", {}
