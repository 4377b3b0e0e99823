"""Gymnasium spaces as columns: whole episodes of nested observations to [rows, width], with a name for each column."""

from __future__ import annotations

from typing import Any

import numpy as np


def width_names(space: Any, name: str) -> list[str]:
    """Column names of a space. ValueError for spaces that are no vectors (images, text, graphs)."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return [column for key, part in space.spaces.items() for column in width_names(part, f"{name}.{key}")]
    if isinstance(space, spaces.Tuple):
        return [column for i, part in enumerate(space.spaces) for column in width_names(part, f"{name}.{i}")]
    if isinstance(space, spaces.Discrete):
        return [f"{name}=={int(space.start) + i}" for i in range(int(space.n))]
    vector = isinstance(space, spaces.Box | spaces.MultiBinary) and not (
        len(space.shape) >= 2 and space.dtype == np.uint8
    )
    if not vector:
        raise ValueError(
            f"{name} lies in {space}; vectors are read here: Box, MultiBinary, Discrete, and Dict or Tuple of them"
        )
    return [f"{name}[{i}]" for i in range(int(np.prod(space.shape)))]


def flatten_rows(space: Any, value: Any) -> np.ndarray:
    """One episode's values to [rows, width]; Discrete becomes one-hot float32, Dict and Tuple are joined in order.

    value: what Minari stores: an array, or for a Dict (Tuple) a mapping to arrays (keys "_index_0", ...).
    """
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return np.concatenate([flatten_rows(part, value[key]) for key, part in space.spaces.items()], 1)
    if isinstance(space, spaces.Tuple):
        parts = [value[f"_index_{i}"] if hasattr(value, "keys") else value[i] for i in range(len(space.spaces))]
        return np.concatenate([flatten_rows(part, v) for part, v in zip(space.spaces, parts, strict=True)], 1)
    rows = np.asarray(value[()] if hasattr(value, "id") else value)
    if isinstance(space, spaces.Discrete):
        index = rows.reshape(-1).astype(np.int64) - int(space.start)
        if index.size and not (0 <= index.min() and index.max() < space.n):
            raise ValueError(f"values {index.min() + space.start}..{index.max() + space.start} lie outside {space}")
        return np.eye(int(space.n), dtype=np.float32)[index]
    return rows.reshape(len(rows), -1)
