"""The official planner's own layers and loss, once a token, in words of our own: for counting what a training step of
theirs starts on a device. It computes something else than our network does, so it is counted and never raced.

Layers as in the released code of Chen et al. (2024), the vector model of its `paper` branch: residual blocks of two
linear maps before and after one GRU cell, whose latent is also read out as x0_hat; the level as sines through two
linear maps. Each token draws its level and its noise, is noised, denoised, turned back into a noise estimate, and
weighed by its fused SNR on its own.
"""

import math

import torch
from torch import Tensor, nn

from dforce.core.schedule import Schedule
from dforce.data.batch import Batch

LAYERS = 4           # residual blocks before the cell, the last of them a linear map; as many after it
CLIP, DECAY = 5.0, 0.9
NOISE = 6.0          # noise is clamped to +- so many standard deviations


class OfficialBlock(nn.Module):
    """GELU of a shortcut plus two linear maps with a GELU between them."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))
        self.short = nn.Identity() if inputs == outputs else nn.Linear(inputs, outputs)
        self.out = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.short(x) + self.inner(x))


def _blocks(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(OfficialBlock(inputs, hidden), *(OfficialBlock(hidden, hidden) for _ in range(LAYERS - 2)),
                         nn.Linear(hidden, outputs))


class OfficialObjective(nn.Module):
    """objective(batch, generator) -> (loss, logs), of tokens [B, T, numbers], every token in turn.

    latent, hidden, features: of the GRU cell, the blocks and the level; the defaults are the official maze planner's.
    """

    def __init__(self, schedule: Schedule, numbers: int, *, latent: int = 128, hidden: int = 512, features: int = 16):
        super().__init__()
        self.schedule, self.latent, self.features = schedule, latent, features
        self.level = nn.Sequential(nn.Linear(features, features), nn.GELU(), nn.Linear(features, features))
        self.before = _blocks(numbers + latent + features, hidden, latent)
        self.cell = nn.GRUCell(latent, latent)
        self.after = _blocks(latent, hidden, latent)
        self.read = nn.Linear(latent, numbers)
        self.register_buffer("alpha", schedule.alpha.float())
        self.register_buffer("sigma", schedule.sigma.float())
        self.register_buffer("snr", schedule.log_snr(torch.arange(1, schedule.levels + 1)).exp().float())

    def forward(self, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        z = batch.x.new_zeros(len(batch.x), self.latent)
        fused, losses = None, []
        for x in batch.x.unbind(1):
            z, loss, fused = self._token(x, z, fused)
            losses.append(loss)
        mean = torch.stack(losses).mean()
        return mean, {"loss": mean.detach()}

    def _token(self, x: Tensor, z: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, numbers], latent, the running SNR of the past -> latent after x, loss [B, numbers], SNR after x."""
        level = torch.randint(1, self.schedule.levels + 1, (len(x),), device=x.device)
        noise = torch.randn_like(x).clamp(-NOISE, NOISE)
        alpha, sigma = self.alpha[level][:, None], self.sigma[level][:, None]  # type: ignore[index]
        noisy = alpha * x + sigma * noise
        z = self._latent(noisy, level, z)
        x0 = self.read(z)
        _ = (noisy / alpha - x0) / (sigma / alpha)  # the noise estimate that their model always returns
        share = self.snr[level - 1] / CLIP  # type: ignore[index]
        clipped = share.clamp(max=1.0)
        weight, after = clipped, clipped
        if past is not None:
            after = past * DECAY + clipped * (1 - DECAY)
            weight = 1 - (1 - past * DECAY) * (1 - clipped)
            _ = 1 - (1 - past * DECAY) * (1 - share)
        error = nn.functional.mse_loss(x0, x, reduction="none")
        return z, error * (weight * CLIP)[:, None], after

    def _latent(self, noisy: Tensor, level: Tensor, z: Tensor) -> Tensor:
        half = self.features // 2
        rates = torch.exp(torch.arange(half, device=noisy.device) * (-math.log(10000) / (half - 1)))
        angles = level[:, None] * rates[None]
        level_code = self.level(torch.cat([angles.sin(), angles.cos()], -1))
        inner = self.before(torch.cat([noisy, z, level_code], -1))
        return self.after(self.cell(inner, z))

