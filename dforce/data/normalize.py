"""Affine normalisation whose statistics are buffers, so that a checkpoint keeps them beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CONSTANT = 1e-6  # a column whose std is below this part of max(1, |mean|) is constant up to float32 rounding


class Affine(nn.Module):
    """(x - mean) / std over the last dimension. mean, std: [D] float32 buffers; std > 0."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Any, std: Any) -> None:
        super().__init__()
        mean, std = (torch.as_tensor(v, dtype=torch.float32).clone() for v in (mean, std))
        if mean.dim() != 1 or mean.shape != std.shape:
            raise ValueError(f"mean and std must both be [D], got {tuple(mean.shape)} and {tuple(std.shape)}")
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise ValueError(f"mean must be finite, std finite and positive, got mean {mean.tolist()}, std "
                             f"{std.tolist()}")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(cls, data: Any, *, lengths: Sequence[int] | None = None, names: Sequence[str] | None = None) -> Affine:
        """Statistics of data [N, D], accumulated in float64; a constant column gets std 1 (it becomes 0, not NaN).

        lengths (rows per episode) and names (of columns) only serve the message of the ValueError for
        data that are not finite.
        """
        data = np.asarray(data)
        if data.ndim != 2 or not len(data):
            raise ValueError(f"statistics need data [N, D] with N > 0, got shape {data.shape}")
        require_finite(data, lengths=lengths, names=names)
        mean = data.mean(0, dtype=np.float64)
        std = data.std(0, dtype=np.float64)
        std = np.where(std <= CONSTANT * np.maximum(1.0, np.abs(mean)), 1.0, std)
        return cls(torch.from_numpy(mean), torch.from_numpy(std))

    @classmethod
    def identity(cls, width: int) -> Affine:
        """The normaliser that changes nothing; a checkpoint's statistics are loaded into one."""
        return cls(torch.zeros(width), torch.ones(width))

    @property
    def width(self) -> int:
        return self.mean.shape[0]

    def part(self, start: int, stop: int) -> Affine:
        """The normaliser of columns start..stop-1."""
        return Affine(self.mean[start:stop], self.std[start:stop])

    def normalize(self, x: Tensor) -> Tensor:
        """Physical -> normalised units. x: [..., D]."""
        return (self._checked(x) - self.mean) / self.std

    def denormalize(self, x: Tensor) -> Tensor:
        """Normalised -> physical units. x: [..., D]; stacked tokens are unstacked first."""
        return self._checked(x) * self.std + self.mean

    forward = normalize

    def _checked(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.width:
            raise ValueError(f"last dimension must be {self.width}, got {tuple(x.shape)}; unstack stacked tokens first")
        return x


def require_finite(data: np.ndarray, *, lengths: Any = None, names: Sequence[str] | None = None,
                   kind: str = "data") -> None:
    """ValueError at the first NaN or infinity in data [N, D]: which episode, step and column, and how many in all.

    lengths: rows of each episode, summing to N; without it the row is named.
    """
    # a finite sum has finite terms: one pass without a temporary in the usual case
    with np.errstate(all="ignore"):
        if np.isfinite(np.sum(data, dtype=np.float64)):
            return
    bad = np.argwhere(~np.isfinite(data))
    if not len(bad):
        return
    row, column = (int(v) for v in bad[0])
    where = f"row {row}"
    if lengths is not None:
        ends = np.cumsum(lengths)
        episode = int(np.searchsorted(ends, row, side="right"))
        where = f"episode {episode}, step {row - int(ends[episode]) + int(lengths[episode])}"
    name = names[column] if names is not None else str(column)
    raise ValueError(f"{kind} holds {len(bad)} non-finite value(s), the first ({data[row, column]}) in {where}, column "
                     f"{name}; repair or drop those episodes")
