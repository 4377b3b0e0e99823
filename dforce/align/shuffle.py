"""Rows of tensors in orders that are functions of counters."""

from typing import Any

import torch
from torch import Tensor

from dforce.core.noise import seed_of
from dforce.core.tree import leaves, select


def permutation(count: int, *counters: int) -> Tensor:
    """[count] numbers 0..count-1 in an order that is a function of the counters."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*counters)))


def dealt(rows: Any, step: int, batch: int, seed: int, *stream: int) -> Any:
    """`batch` of the rows of every leaf, for step after step: each epoch in an order of its own, whole batches only."""
    first = leaves(rows)[0]
    epoch, part = divmod(step, len(first) // batch)
    order = permutation(len(first), seed, epoch, *stream)
    return select(rows, order[part * batch:(part + 1) * batch].to(first.device))
