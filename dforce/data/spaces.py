"""Gymnasium spaces as columns: whole episodes of nested observations to [rows, width], with a name for each column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def stored_spaces(data: Path) -> tuple[Any, Any]:
    """Observation and action space of a Minari data folder; its environment's where it does not store them itself."""
    from minari.dataset.minari_storage import MinariStorage

    storage = MinariStorage.read(data)
    return storage.observation_space, storage.action_space


def column_names(space: Any, name: str) -> list[str]:
    """Names of a space's columns, which begin with `name`. ValueError for what is no vector (images, text, graphs)."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return [column for key, part in space.spaces.items() for column in column_names(part, f"{name}.{key}")]
    if isinstance(space, spaces.Tuple):
        return [column for i, part in enumerate(space.spaces) for column in column_names(part, f"{name}.{i}")]
    if isinstance(space, spaces.Discrete):
        return [f"{name}=={int(space.start) + i}" for i in range(int(space.n))]
    if not isinstance(space, spaces.Box | spaces.MultiBinary) or len(space.shape) >= 2 and space.dtype == np.uint8:
        raise ValueError(f"{name} lies in {space}; vectors are read here: Box, MultiBinary, Discrete, and Dict or "
                         "Tuple of them")
    return [f"{name}[{i}]" for i in range(int(np.prod(space.shape)))]


def flatten_rows(space: Any, value: Any) -> np.ndarray:
    """Values of one episode to [rows, width]; Discrete becomes one-hot float32, Dict and Tuple are joined in order.

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
