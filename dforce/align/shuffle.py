"""Rows of tensors: kept in .npz files, shuffled by counters, dealt out epoch after epoch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.noise import seed_of
from dforce.core.tree import leaves, map_state, select


def permutation(count: int, *counters: int) -> Tensor:
    """[count] numbers 0..count-1 in an order that is a function of the counters."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*counters)))


def dealt(rows: Any, step: int, batch: int, seed: int, *stream: int) -> Any:
    """`batch` of the rows of every leaf, for step after step: each epoch in an order of its own, whole batches only."""
    first = leaves(rows)[0]
    epoch, part = divmod(step, len(first) // batch)
    order = permutation(len(first), seed, epoch, *stream)
    return select(rows, order[part * batch:(part + 1) * batch].to(first.device))


def read_npz(path: str | Path, what: str) -> dict[str, Tensor]:
    """The arrays of an .npz file, by name. FileNotFoundError, or ValueError that says that it is no file of `what`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{path} is no .npz file of {what}: {error}") from error


def write_npz(path: str | Path, arrays: Mapping[str, Tensor]) -> None:
    """What `read_npz` reads, through a temporary name: a reader never sees half a file."""
    temporary = Path(f"{path}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **map_state(lambda leaf: leaf.detach().cpu(), dict(arrays)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
