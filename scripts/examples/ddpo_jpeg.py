"""TRL's DDPO example here: Stable Diffusion tuned to small JPEG files: python scripts/examples/ddpo_jpeg.py FOLDER
[--config ddpo.yaml] [--out runs/ddpo_jpeg] [--epochs N]

FOLDER: a Stable Diffusion 1.x or 2.x in diffusers' layout. --config: the fields of a DDPOConfig of TRL or of
ddpo-pytorch; without it TRL's defaults. `jpeg_compressibility` and `prompt_function` have TRL's signatures: put your
own in their place. The adapters are written in diffusers' layout: pipeline.load_lora_weights(OUT) in any pipeline.
"""

import argparse
import io
import random
from math import prod
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dforce.align import add_lowrank
from dforce.align.algorithms.common import Setup
from dforce.align.algorithms.ddpo import ImportanceSampling
from dforce.align.loop import tuning_epochs
from dforce.align.lora_diffusers import save_lora
from dforce.guidance.wrapper import module_inside
from dforce.images.pipeline import load_pipeline
from dforce.images.trl import prompts_from_trl, read_trl, reward_from_trl

ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")  # TRL's, of rank 4
ROWS = 4                                        # steps of runs at once: memory, and nothing else


def jpeg_compressibility(images: Tensor, prompts: Any, metadata: Any) -> tuple[Tensor, dict[str, Any]]:
    """images: [B, 3, H, W] in 0..1 -> minus kilobytes as JPEG files, and metadata."""
    sizes = []
    for image in (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=95)
        sizes.append(file.tell() / 1000)
    return -torch.tensor(sizes), {}


def prompt_function() -> tuple[str, dict[str, Any]]:
    """A prompt and its metadata."""
    return random.choice(["a cat", "a dog", "a horse", "a rabbit", "a zebra", "a spider", "a bird", "a sheep"]), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--config")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, default=Path("runs/ddpo_jpeg"))
    args = parser.parse_args()
    pipeline = load_pipeline(args.folder)
    network = module_inside(pipeline.denoiser)
    add_lowrank(network, rank=4, targets=lambda name, module: name.endswith(ADAPTED))
    read = read_trl(args.config or {}, dims=prod(pipeline.shape))
    for note in read.notes:
        print(f"note: {note}")
    settings = read.under("algorithm") | ({"epochs": args.epochs} if args.epochs else {})
    sampler = pipeline.sampler(read.words["steps"], guidance=read.words["guidance"], eta=read.words["eta"], rows=ROWS)
    aligning = ImportanceSampling(**settings).prepare(Setup(
        sampler, reward_from_trl(jpeg_compressibility), prompts_from_trl(prompt_function, pipeline.encode),
        decode=pipeline.decode, seed=read.words["seed"], rows=ROWS))
    for epoch in tuning_epochs(aligning, seed=read.words["seed"]):
        print(f"epoch {epoch.number}: reward {epoch.metrics['reward']:.4f} +- {epoch.metrics['reward_std']:.4f}, "
              f"log-ratio up to {epoch.metrics['log_ratio']:.3f} nats", flush=True)
    print(f"adapters: {save_lora(args.out, network)}")


if __name__ == "__main__":
    main()
