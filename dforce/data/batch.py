"""The batch of a training step: tokens, their conditions, and where a sequence begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Cond = dict[str, dict[str, Tensor]]  # {"token": {name: [B, T, ...]}, "static": {name: [B, ...]}}


class Batch(NamedTuple):
    """Tokens of B sequences.

    x: [B, T, *E] float32. mask: [B, T] bool, True where the token is data and not padding.
    cond: conditions, those of each token ("token", [B, T, ...]) and those of the whole sequence ("static", [B, ...]).
    first: [B] bool, True where the sequence begins anew, False where it continues row b of the batch before.
    """

    x: Tensor
    mask: Tensor
    cond: Cond
    first: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(self.x.to(device), self.mask.to(device), _map(self.cond, lambda v: v.to(device)),
                     self.first.to(device))

    def rows(self, index: Tensor | slice) -> Batch:
        """Some sequences of the batch. index: [N] integers, [B] bool, or a slice -> a batch of N."""
        return Batch(self.x[index], self.mask[index], cond_rows(self.cond, index), self.first[index])


def checked_batch(batch: Batch) -> Batch:
    """The batch itself, if its shapes agree; else a ValueError, which names the array whose shape does not."""
    size, tokens = batch.x.shape[:2]
    parts: list[tuple[str, Any, tuple[int, ...]]] = [
        ("mask", batch.mask, (size, tokens)), ("first", batch.first, (size,)),
        *((f"cond['token']['{name}']", value, (size, tokens)) for name, value in batch.cond.get("token", {}).items()),
        *((f"cond['static']['{name}']", value, (size,)) for name, value in batch.cond.get("static", {}).items())]
    for name, value, shape in parts:
        if tuple(value.shape[: len(shape)]) != shape:
            raise ValueError(f"{name} must begin with shape {shape} as x is {tuple(batch.x.shape)}, got "
                             f"{tuple(value.shape)}")
    unknown = set(batch.cond) - {"token", "static"}
    if unknown:
        raise ValueError(f"cond has the parts 'token' and 'static', got also {sorted(unknown)}")
    return batch


def cond_rows(cond: Cond, index: Tensor | slice) -> Cond:
    """The conditions of some rows. index: [N] integers, [B] bool, or a slice."""
    return _map(cond, lambda value: value[index])


def stack(x: Tensor, size: int) -> Tensor:
    """`size` consecutive raw tokens as one: [..., T * size, D] -> [..., T, size * D] (Chen et al. 2024, appendix B)."""
    *lead, raw, width = x.shape
    if size < 1 or raw % size:
        raise ValueError(f"{raw} raw tokens cannot be stacked by {size}: choose a stack that divides {raw}")
    return x.reshape(*lead, raw // size, size * width)


def unstack(x: Tensor, size: int) -> Tensor:
    """Inverse of `stack`. x: [..., T, size * D] -> [..., T * size, D]."""
    *lead, tokens, width = x.shape
    if size < 1 or width % size:
        raise ValueError(f"tokens of width {width} do not hold {size} raw tokens each: was another stack used?")
    return x.reshape(*lead, tokens * size, width // size)


def _map(cond: Cond, function: Callable[[Tensor], Tensor]) -> Cond:
    return {part: {name: function(value) for name, value in values.items()} for part, values in cond.items()}
