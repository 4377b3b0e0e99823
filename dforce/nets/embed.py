"""Features of a noise level and of conditioning for networks, and the checks of tokens that all networks share."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = 8  # of every group norm in a U-Net, as in Diffuser


class LevelFeatures(nn.Module):
    """A log-SNR in nats, [B, T] -> [B, T, 2 * pairs + 1]: itself / 10, sines and cosines of periods 80 to 2 nats."""

    frequency: Tensor

    def __init__(self, pairs: int = 8):
        super().__init__()
        self.register_buffer("frequency", 2 * math.pi / torch.logspace(math.log10(80.0), math.log10(2.0), pairs),
                             persistent=False)
        self.dim = 2 * pairs + 1

    def forward(self, label: Tensor) -> Tensor:
        angle = label[..., None] * self.frequency
        return torch.cat([label[..., None] / 10, angle.sin(), angle.cos()], -1)


def check_sizes(width: int, multipliers: Sequence[int]) -> None:
    """ValueError for channels of a U-Net that its group norms cannot divide."""
    if width < 1 or width % GROUPS or not multipliers or min(multipliers) < 1:
        raise ValueError(f"width must be a positive multiple of {GROUPS}, multipliers one or more integers >= 1, "
                         f"got width={width}, multipliers={list(multipliers)}")


def flat_tokens(x: Tensor, event_shape: tuple[int, ...]) -> Tensor:
    """x [B, T, *E] as vectors [B, T, dim]. Raises ValueError if *E is not `event_shape`."""
    if tuple(x.shape[2:]) != event_shape:
        raise ValueError(f"this network takes tokens [B, T, {', '.join(map(str, event_shape))}], got {[*x.shape]}")
    return x.flatten(2)


def static_vector(cond: Any, sizes: dict[str, int], batch: int) -> Tensor:
    """The vectors cond["static"][name] [B, size] side by side, [B, sum of sizes]; their rows and sizes checked."""
    values = torch.cat(gather(cond, "static", sizes), -1)
    if len(values) != batch:
        raise ValueError(f"cond['static'] holds {len(values)} rows for a batch of {batch}")
    return values


def gather(cond: Any, kind: str, sizes: dict[str, int]) -> list[Tensor]:
    """The vectors cond[kind][name] that a network was built for, in a fixed order; ValueError if one does not fit."""
    vectors = []
    for name, size in sizes.items():
        value = (cond or {}).get(kind, {}).get(name)
        if value is None:
            have = sorted((cond or {}).get(kind, {}))
            raise ValueError(f"the network was built for cond[{kind!r}][{name!r}] of size {size}, got {have or 'none'}")
        if value.shape[-1] != size:
            raise ValueError(f"cond[{kind!r}][{name!r}] must end in {size}, got {[*value.shape]}")
        vectors.append(value)
    return vectors
