"""What clients of a policy server say, checked before anything of it is used: sizes first, then types, then numbers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

Parts = Mapping[str, int | tuple[int, int, int]]  # name -> numbers of a part of an observation; (H, W, 3) of a camera
KINDS = {"<f4", "<f8", "<f2", "|u1", "|i1", "<i2", "<i4", "<i8", "|b1"}  # dtypes of arrays
KEYS = {"number", "time", "deadline", "reset", "executed", "missing", "observation"}
DIMENSIONS, LONGEST = 4, 3600.0  # of an array; seconds of a deadline


class Request(NamedTuple):
    """One message. observation: name -> [1, width] float32; missing: name -> bool, for every part."""

    number: int
    time: float
    deadline: float | None
    reset: bool
    executed: int | None
    missing: dict[str, bool]
    observation: dict[str, np.ndarray]


def largest(parts: Parts) -> int:
    """Bytes of the longest message about an observation of these parts; in any dtype, so that a wrong one is told."""
    return 4096 + sum(8 * (size if isinstance(size, int) else math.prod(size)) + len(name.encode()) + 256
                      for name, size in parts.items())


def blank(size: int | tuple[int, int, int]) -> np.ndarray:
    """Zeros [1, numbers] in the place of a part that is missing, or a black picture [1, H, W, 3]."""
    return np.zeros((1, size), np.float32) if isinstance(size, int) else np.zeros((1, *size), np.uint8)


def unpacked(message: Any) -> dict[str, Any]:
    """The fields of a message. ValueError where it is none, so that nothing more is to be expected of its sender."""
    if isinstance(message, str):
        raise ValueError("a message is msgpack in a binary frame, a text frame came")
    try:
        fields = msgpack.unpackb(message, max_map_len=64, max_array_len=DIMENSIONS, max_ext_len=0)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"no msgpack of the wanted form: {type(error).__name__} {str(error)[:60]}") from None
    if not isinstance(fields, dict) or not fields.keys() <= KEYS or not {"number", "observation"} <= fields.keys():
        raise ValueError(f"a message maps {', '.join(sorted(KEYS))} to values, number and observation at least")
    return fields


def checked(fields: Mapping[str, Any], parts: Parts, *, execute: int, number: int | None) -> Request:
    """The request of a message's fields; ValueError says what is wrong.

    execute: actions of a reply. number: that is due, None at
    the first message, which may begin with any.
    """
    count = fields["number"]
    if not _whole(count, 0, 2**53) or number is not None and count != number:
        raise ValueError(f"number {_shown(count)} came, {'0 or more' if number is None else number} is due: numbers "
                         "rise by 1, and one that was answered is not answered again")
    deadline, executed, reset = fields.get("deadline"), fields.get("executed"), fields.get("reset", False)
    if deadline is not None and not _real(deadline, 0, LONGEST):
        raise ValueError(f"deadline is 0 to {LONGEST:g} seconds, or nil, got {_shown(deadline)}")
    if executed is not None and not _whole(executed, 0, execute):
        raise ValueError(f"executed is how many of the last {execute} actions were, or nil, got {_shown(executed)}")
    time = fields.get("time", 0.0)
    if not isinstance(reset, bool) or not _real(time, -1e12, 1e12):
        raise ValueError(f"reset is a bool and time a number of seconds, got {_shown(reset)} and {_shown(time)}")
    missing = _missing(fields.get("missing"), parts)
    arrays = fields["observation"]
    if not isinstance(arrays, dict) or not arrays.keys() <= parts.keys() or any(
            name not in arrays and not missing[name] for name in parts):
        raise ValueError(f"an observation has arrays named {', '.join(parts)}, got {_shown(arrays)}")
    return Request(count, time, deadline, reset, executed, missing, {
        name: _array(name, arrays[name], size) if name in arrays else blank(size) for name, size in parts.items()})


def _missing(value: Any, parts: Parts) -> dict[str, bool]:
    value = dict.fromkeys(parts, value) if isinstance(value, bool) else {} if value is None else value
    if not isinstance(value, dict) or not value.keys() <= parts.keys() or not all(
            isinstance(each, bool) for each in value.values()):
        raise ValueError(f"missing is a bool, nil, or maps some of {', '.join(parts)} to bools, got {_shown(value)}")
    return {name: value.get(name, False) for name in parts}


def _array(name: str, array: Any, size: int | tuple[int, int, int]) -> np.ndarray:
    """[1, size] float32 of an array of a message, where what lies beyond float32 is not finite, so missing; or a
    picture, uint8 [1, H, W, 3]."""
    if not isinstance(array, dict) or array.keys() != {"dtype", "shape", "data"}:
        raise ValueError(f"{name} is an array {{dtype, shape, data}}, got {_shown(array)}")
    kind, shape, data = array["dtype"], array["shape"], array["data"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{name} has dtype {_shown(kind)}, wanted is one of {', '.join(sorted(KINDS))}")
    width = size if isinstance(size, int) else math.prod(size)
    if size != width and (kind != "|u1" or shape != [*size]):  # type: ignore[misc]
        raise ValueError(f"{name} is a picture, |u1 of shape {size}, got {kind} of shape {_shown(shape)}")
    if not isinstance(shape, list) or not all(_whole(side, 1, width) for side in shape) or math.prod(shape) != width:
        raise ValueError(f"{name} has {width} numbers, got shape {_shown(shape)}")
    if not isinstance(data, bytes) or len(data) != width * np.dtype(kind).itemsize:
        raise ValueError(f"{name} of {width} {kind} needs {width * np.dtype(kind).itemsize} bytes, got "
                         f"{len(data) if isinstance(data, bytes) else _shown(data)}")
    with np.errstate(all="ignore"):
        values = np.frombuffer(data, kind)
        return values.astype(np.float32).reshape(1, width) if size == width else values.reshape(1, *shape)


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _shown(value: Any) -> str:
    return f"{', '.join(map(str, value)) if isinstance(value, dict) else value!r}"[:80]
