"""The latents of diffusers' autoencoders: how they are scaled, and images from them with a gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dforce.core.diffusers_schedule import AUTOENCODER, refusals


def latent_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """(scale, shift), [c, 1, 1] or [1, 1, 1]: a latent is (mean - shift) * scale. ValueError for other layouts.

    Rombach et al. 2022, appendix G: shift_factor and scaling_factor, or of each channel latents_mean and
    scaling_factor / latents_std.
    """
    if wrong := refusals(vae, AUTOENCODER):
        raise ValueError(f"the autoencoder has {', '.join(wrong)}, which is not reproduced here")
    config = vae.config
    mean, std, shift = config.get("latents_mean"), config.get("latents_std"), config.get("shift_factor")
    if (mean is None) != (std is None) or (mean is not None and shift):
        raise ValueError("the autoencoder's latents are scaled by latents_mean and latents_std together, or by "
                         f"shift_factor; got latents_mean={mean}, latents_std={std}, shift_factor={shift}")
    shifts = torch.tensor([float(shift or 0)] if mean is None else mean, dtype=torch.float64)
    spreads = torch.tensor([1.0] if std is None else std, dtype=torch.float64)
    channels = 1 if mean is None else config.latent_channels
    if len(shifts) != channels or len(spreads) != channels or not (spreads > 0).all():
        raise ValueError(f"latents_mean and latents_std are {channels} numbers, the latter positive; got {mean}, {std}")
    return float(config.scaling_factor) / spreads[:, None, None], shifts[:, None, None]


class Decode:
    """latents [B, 1, c, h, w] -> images [B, 1, C, H, W] in [-1, 1], `at_once` at a time, with their gradient.

    Where a gradient is wanted the activations of a part are computed again on the way back, so that memory is that of
    one part.
    """

    def __init__(self, vae: Any, at_once: int = 4):
        if vae.dtype == torch.float16 and vae.config.get("force_upcast"):
            vae.float()  # as its pipeline does: its activations exceed half precision
        self.vae, self.at_once = vae, at_once
        self.scale, self.shift = latent_scale(vae)

    def __call__(self, latents: Tensor) -> Tensor:
        channels = int(self.vae.config.latent_channels)
        if latents.ndim != 5 or latents.shape[1] != 1 or latents.shape[2] != channels:
            raise ValueError(f"the autoencoder takes latents [B, 1, {channels}, h, w], got {[*latents.shape]}")
        again = torch.is_grad_enabled() and latents.requires_grad and len(latents) > self.at_once
        parts = [checkpoint(self._part, part, use_reentrant=False) if again else self._part(part)
                 for part in latents[:, 0].split(self.at_once)]
        return torch.cat(parts)[:, None]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images [B, 1, C, H, W] in [-1, 1] -> the means of their latents [B, 1, c, h, w]."""
        means = [self.vae.encode(part.to(self.vae.device, self.vae.dtype)).latent_dist.mean
                 for part in images[:, 0].split(self.at_once)]
        mean = torch.cat(means)
        return ((mean - self.shift.to(mean)) * self.scale.to(mean))[:, None].to(images.dtype)

    def _part(self, part: Tensor) -> Tensor:
        x = part.to(self.vae.device, self.vae.dtype)
        x = self.vae.decode(x / self.scale.to(x) + self.shift.to(x)).sample
        return x.to(part.dtype).clamp(-1, 1)
