"""Arrays from files, checked where they enter: numbers of the right kind, in as many rows as there are steps."""

from typing import Any

import numpy as np

KINDS = {"f": "real", "i": "whole", "u": "whole", "b": "boolean", "c": "complex", "O": "object", "S": "byte strings",
         "U": "strings", "V": "records"}


def checked_rows(value: Any, rows: int | None, name: str) -> np.ndarray:
    """Real or whole numbers [rows, width], as they are stored; ValueError, which begins with `name`, for others."""
    array = _checked(value, rows, name, "fiu")
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} has the shape {array.shape}, wanted is (rows, width)")
    return array


def checked_column(value: Any, rows: int, name: str, *, flag: bool = False, wide: bool = False) -> np.ndarray:
    """Numbers [rows], or [rows, ...] where wide; ValueError, which begins with `name`, for others.

    flag: 0 and 1 of any kind, returned as boolean.
    """
    array = _checked(value, rows, name, "fiub" if flag or wide else "fiu")
    if wide:
        return array
    if array.size != rows:
        raise ValueError(f"{name} has the shape {array.shape}, wanted is one number a row")
    if flag and not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name} must hold only 0 and 1, got {array[~np.isin(array, (0, 1))][0]}")
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
