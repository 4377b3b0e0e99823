"""Affine normalisation whose statistics are buffers, so that a checkpoint keeps them beside the weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# A column whose std is below this part of its largest magnitude is constant, up to the rounding of its numbers.
CONSTANT, CONSTANT_64 = 1e-6, 1e-11  # of float32, of float64 and whole numbers
FAR = 1e-3      # of |mean|: of a smaller std, float32 keeps fewer than 4 digits, and float64 is centred first
EXTREME = 1e4   # times further from the median than 99 of 100 values: such a value makes the std, not the data
HUGE = 1e6      # the same where 99 of 100 values are equal
ROWS = 100_000  # of which the 99 of 100 are told


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
            raise ValueError(f"mean must be finite, std finite and positive, got {mean.tolist()}, {std.tolist()}")
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    @classmethod
    def fit(cls, data: Any, *, lengths: Sequence[int] | None = None, names: Sequence[str] | None = None) -> Affine:
        """Statistics of data [N, D], accumulated in float64; a constant column gets std 1 (it becomes 0, not NaN).

        Warns of constant and of extreme columns. lengths (rows per episode) and names (of columns) serve the messages.
        """
        data = np.asarray(data)
        if data.ndim != 2 or not len(data):
            raise ValueError(f"statistics need data [N, D] with N > 0, got shape {data.shape}")
        require_finite(data, lengths=lengths, names=names)
        mean = data.mean(0, dtype=np.float64)
        std = data.std(0, dtype=np.float64)
        constant = std <= _resolution(data) * np.abs(data).max(0)
        for message, columns in (("constant: only their mean is subtracted", constant),
                                 ("spread by a few extreme values, which make all others nearly equal; repair or drop "
                                  "those", _extreme(data))):
            if columns.any():
                shown = [str(names[int(i)]) if names is not None else str(i) for i in np.flatnonzero(columns)]
                warnings.warn(f"columns {', '.join(shown)} are {message}", stacklevel=2)
        std = np.where(constant, 1.0, std)
        return cls(torch.from_numpy(mean), torch.from_numpy(std))

    @classmethod
    def fit_limits(cls, data: np.ndarray, *, names: Sequence[str] | None = None) -> Affine:
        """Maps the least and the largest value of each column of data [N, D] to -1 and 1; a constant one as `fit`."""
        usual, low, high = cls.fit(data, names=names), data.min(0).astype(np.float64), data.max(0).astype(np.float64)
        half = torch.from_numpy((high - low) / 2)
        return cls(torch.from_numpy((high + low) / 2), torch.where(half > CONSTANT * usual.std, half, usual.std))

    @classmethod
    def identity(cls, width: int) -> Affine:
        """The normaliser that changes nothing; a checkpoint's statistics are loaded into one."""
        return cls(torch.zeros(width), torch.ones(width))

    def shifted(self, offset: np.ndarray) -> Affine:
        """The normaliser of data from which `offset` [D] was subtracted."""
        return Affine(self.mean.double() - torch.from_numpy(offset).to(self.mean.device), self.std)

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


def float32_offset(data: np.ndarray) -> np.ndarray:
    """[D] float64 to subtract from [N, D] before they become float32 (5e6 + .1 t has steps of .5); 0 where needless."""
    if _resolution(data) == CONSTANT:
        return np.zeros(data.shape[1])
    mean, std = data.mean(0, dtype=np.float64), data.std(0, dtype=np.float64)
    far = (std < FAR * np.abs(mean)) & (std > CONSTANT_64 * np.abs(data).max(0))
    return np.where(far, mean.astype(np.float32).astype(np.float64), 0.0)


def _resolution(data: np.ndarray) -> float:
    return CONSTANT if data.dtype in (np.float32, np.float16) else CONSTANT_64


def _extreme(data: np.ndarray) -> np.ndarray:
    """[D] bool, True in columns with values far beyond all others."""
    middle = np.median(data[:: max(1, len(data) // ROWS)], axis=0)
    usual = np.quantile(np.abs(data[:: max(1, len(data) // ROWS)] - middle), 0.99, axis=0)
    most = np.maximum(data.max(0) - middle, middle - data.min(0))
    return (most > EXTREME * usual) & ((usual > 0) | (most > HUGE))


def require_finite(data: np.ndarray, *, lengths: Any = None, names: Sequence[str] | None = None,
                   kind: str = "data") -> None:
    """ValueError at the first NaN or infinity in data [N, D], by episode (of `lengths` rows), step and column."""
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
