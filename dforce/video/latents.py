"""Frames in the latent space of a pretrained autoencoder (diffusers' AutoencoderKL): smaller tokens, same library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dforce.nets.autoencoder import latent_scale

AT_ONCE = 16  # frames that go through the autoencoder together: its finest maps are large


class Latents:
    """Encodes and decodes clips by a frozen autoencoder, on its device. channels, shrink (pixels a side): of a latent.

    A latent is (mean - shift) * scale, of a standard deviation of about one (Rombach et al. 2022, appendix G):
    shift_factor and scaling_factor, or of each channel latents_mean and scaling_factor / latents_std.
    """

    def __init__(self, vae: Any):
        self.vae = vae.eval().requires_grad_(False)
        config = vae.config
        self.scale, self.shift = latent_scale(vae)
        self.channels, self.colours = int(config.latent_channels), int(config.in_channels)
        self.shrink = 2 ** (len(config.block_out_channels) - 1)

    def event_shape(self, frame: tuple[int, ...]) -> tuple[int, int, int]:
        """The shape of the latent of a frame (C, H, W). ValueError where the autoencoder does not take such frames."""
        if len(frame) != 3 or frame[0] != self.colours or frame[1] % self.shrink or frame[2] % self.shrink:
            raise ValueError(f"{self.colours} channels whose sides are multiples of {self.shrink}, got {tuple(frame)}")
        return self.channels, frame[1] // self.shrink, frame[2] // self.shrink

    def encode(self, frames: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """frames [B, T, C, H, W] in [-1, 1] -> means of the posterior, or draws by `generator`, [B, T, c, h, w]."""
        self.event_shape(tuple(frames.shape[2:]))

        def one(part: Tensor) -> Tensor:
            posterior = self.vae.encode(part).latent_dist
            drawn = posterior.mode() if generator is None else posterior.sample(generator)
            return (drawn - self.shift.to(drawn)) * self.scale.to(drawn)
        return self._in_parts(one, frames)

    def decode(self, latents: Tensor) -> Tensor:
        """latents [B, T, c, h, w] -> frames [B, T, C, H, W], nominally in [-1, 1], not clamped."""
        if latents.shape[2] != self.channels:
            raise ValueError(f"the autoencoder has latents of {self.channels} channels, got {[*latents.shape]}")
        return self._in_parts(
            lambda part: self.vae.decode(part / self.scale.to(part) + self.shift.to(part)).sample, latents)

    @torch.no_grad()
    def _in_parts(self, function: Callable[[Tensor], Tensor], clips: Tensor) -> Tensor:
        parts = clips.flatten(0, 1).split(AT_ONCE)
        return torch.cat([function(part.to(self.vae.device)) for part in parts]).unflatten(0, clips.shape[:2])


def load_latents(folder: str | Path, *, device: torch.device | str = "cpu") -> Latents:
    """The autoencoder in `folder`, or its part `vae`, as diffusers' `save_pretrained` writes it; no download."""
    place = Path(folder).expanduser()
    place = place / "vae" if (place / "vae" / "config.json").is_file() else place
    if not (place / "config.json").is_file():
        raise ValueError(f"{folder} is no folder of an AutoencoderKL: there is no config.json in it; bring one there "
                         "with AutoencoderKL.save_pretrained, for nothing is downloaded from here")
    from diffusers import AutoencoderKL

    named = AutoencoderKL.load_config(str(place), local_files_only=True).get("_class_name")
    if named != "AutoencoderKL":
        raise ValueError(f"{place} holds a {named}, wanted an AutoencoderKL, which encodes one frame at a time")
    try:
        vae = AutoencoderKL.from_pretrained(str(place), local_files_only=True, use_safetensors=True,
                                            low_cpu_mem_usage=False)
    except Exception as error:  # diffusers and safetensors have errors of their own
        raise ValueError(f"cannot load the autoencoder in {place}: {error}") from error
    return Latents(vae.to(device))
