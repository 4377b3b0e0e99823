"""How a network is told a noise level."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LevelFeatures(nn.Module):
    """Features of a log-SNR in nats, [B, T] -> [B, T, 2 * pairs + 1]: itself / 10, and sines and cosines.

    Periods run from 80 nats (monotone over the whole range of +-20) down to 2 (resolves neighbouring sampling steps).
    """

    frequency: Tensor

    def __init__(self, pairs: int = 8):
        super().__init__()
        self.register_buffer("frequency", 2 * math.pi / torch.logspace(math.log10(80.0), math.log10(2.0), pairs),
                             persistent=False)
        self.dim = 2 * pairs + 1

    def forward(self, label: Tensor) -> Tensor:
        angle = label[..., None] * self.frequency
        return torch.cat([label[..., None] / 10, angle.sin(), angle.cos()], -1)
