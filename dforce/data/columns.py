"""Arrays from files, checked where they enter, and Gymnasium spaces as their columns, with a name for each."""

import math
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {"f": "real", "i": "whole", "u": "whole", "b": "boolean", "c": "complex", "O": "object", "S": "byte strings",
         "U": "strings", "V": "records"}
CHOICES, COLUMNS = 4096, 65536  # of a discrete space, of any space; what declares more is refused, not allocated


def checked_rows(value: Any, rows: int | None, name: str) -> np.ndarray:
    """Real or whole numbers [rows, width], as they are stored; ValueError, which begins with `name`, for others."""
    array = _checked(value, rows, name, "fiu")
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} has the shape {array.shape}, wanted is (rows, width)")
    return array


def checked_column(value: Any, rows: int, name: str, *, flag: bool = False, wide: bool = False) -> np.ndarray:
    """Numbers [rows], or [rows, ...] where wide; flag: 0 and 1 of any kind, as boolean. ValueError names `name`."""
    array = _checked(value, rows, name, "fiub" if flag or wide else "fiu")
    if wide:
        return array
    if array.size != rows or array.ndim > 2:
        raise ValueError(f"{name} has the shape {array.shape}, wanted is one number a row")
    if flag and not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must hold only 0 and 1, got {array[~np.isin(array, (0, 1))][0]}")
    if not flag and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)][0]}")
    return array.astype(bool).reshape(-1) if flag else array.reshape(-1)


def _checked(value: Any, rows: int | None, name: str, kinds: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in kinds:
        wanted = " or ".join(dict.fromkeys(KINDS[kind] for kind in kinds))
        raise ValueError(f"{name} holds {KINDS.get(array.dtype.kind, str(array.dtype))} values ({array.dtype}), wanted "
                         f"are {wanted} numbers")
    if array.ndim == 0 or rows is not None and len(array) != rows:
        raise ValueError(f"{name} has {len(array) if array.ndim else 'no'} rows, wanted are {rows}")
    return array


def opened_storage(data: Path) -> Any:
    """Minari's view of a data folder: spaces (its environment's where it stores none) and encodings."""
    from minari.dataset.minari_storage import MinariStorage

    try:
        return MinariStorage.read(data)
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{data / 'metadata.json'} does not describe spaces and storage ({error}); restore the "
                         "dataset or generate it again") from error


def is_picture(space: Any) -> bool:
    """Is it a space of pictures, uint8 [H, W, C] or [C, H, W] of one or three channels?"""
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    return getattr(space, "dtype", None) == np.uint8 and len(shape) == 3 and (shape[2] in (1, 3) or shape[0] in (1, 3))


def _width(space: Any) -> int:
    """Columns of a space that is one array."""
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    return math.prod(shape) * (1 if shape else int(getattr(space, "n", 1)))


def column_names(space: Any, name: str) -> list[str]:
    """Names of a space's columns, which begin with `name`; pictures have none. ValueError for text, graphs, others."""
    from gymnasium import spaces

    if is_picture(space):
        return []
    if _width(space) > COLUMNS:
        raise ValueError(f"{name} lies in {space}, which has {_width(space):,} columns; at most {COLUMNS:,} are read")
    if isinstance(space, spaces.Dict):
        return [column for key, part in space.spaces.items() for column in column_names(part, f"{name}.{key}")]
    if isinstance(space, spaces.Tuple):
        return [column for i, part in enumerate(space.spaces) for column in column_names(part, f"{name}.{i}")]
    if isinstance(space, spaces.Discrete):
        return [f"{name}=={int(space.start) + i}" for i in range(int(space.n))]
    if not isinstance(space, spaces.Box | spaces.MultiBinary) or len(space.shape) >= 2 and space.dtype == np.uint8:
        raise ValueError(f"{name} lies in {space}; vectors are read here, Box, MultiBinary, Discrete, Dict, Tuple, and "
                         "pictures, uint8 (height, width, 1 or 3)")
    return [f"{name}[{i}]" for i in range(int(np.prod(space.shape)))]


def one_hot(index: np.ndarray, width: int) -> np.ndarray:
    """Numbers [rows] of 0..width-1 as float32 [rows, width]. ValueError for more choices than CHOICES."""
    if width > CHOICES:
        raise ValueError(f"{width:,} choices, at most {CHOICES:,} are one-hot here: store measurements as floats")
    rows = np.zeros((len(index), width), np.float32)
    rows[np.arange(len(index)), index] = 1
    return rows


def flatten_rows(space: Any, value: Any) -> np.ndarray:
    """Values of an episode, as Minari stores them, to [rows, width]; Discrete is one-hot, Dict and Tuple are joined.

    Pictures are no columns; only their number counts.
    """
    from gymnasium import spaces

    if is_picture(space):
        return np.zeros((len(value), 0), np.float32)
    if isinstance(space, spaces.Dict):
        if lost := sorted(set(space.spaces) - set(value)):
            raise ValueError(f"it has no {', '.join(lost)}")
        return np.concatenate([flatten_rows(part, value[key]) for key, part in space.spaces.items()], 1)
    if isinstance(space, spaces.Tuple):
        parts = [value[f"_index_{i}"] if hasattr(value, "keys") else value[i] for i in range(len(space.spaces))]
        return np.concatenate([flatten_rows(part, v) for part, v in zip(space.spaces, parts, strict=True)], 1)
    rows = np.asarray(value)
    if isinstance(space, spaces.Discrete):
        if rows.dtype.kind not in "iu" or rows.size != len(rows):
            raise ValueError(f"{rows.dtype} values of shape {rows.shape}, {space} says one whole number a row")
        index = rows.reshape(-1).astype(np.int64) - int(space.start)
        if index.size and not (0 <= index.min() and index.max() < space.n):
            raise ValueError(f"values {index.min() + space.start}..{index.max() + space.start} lie outside {space}")
        return one_hot(index, int(space.n))
    if rows.dtype.kind not in "fiub" or rows.dtype.kind == "b" and isinstance(space, spaces.Box):
        raise ValueError(f"{rows.dtype} values, wanted are real or whole numbers")
    if rows.shape[1:] != space.shape:
        raise ValueError(f"rows of shape {rows.shape[1:]}, {space} says {space.shape}")
    return rows.reshape(len(rows), -1)
