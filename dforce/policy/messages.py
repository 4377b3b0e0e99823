"""What clients of a policy server say, checked before anything of it is used: sizes first, then types, then numbers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

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


def largest(parts: Mapping[str, int]) -> int:
    """Bytes of the longest message about an observation of these parts (name -> numbers)."""
    return 4096 + sum(8 * width + len(name.encode()) + 256 for name, width in parts.items())


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


def checked(fields: Mapping[str, Any], parts: Mapping[str, int], *, execute: int, number: int | None) -> Request:
    """The request of a message's fields; ValueError says what is wrong.

    parts: name -> numbers of each part of an observation. execute: actions of a reply. number: that is due, None at
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
        name: _numbers(name, arrays[name], width) if name in arrays else np.zeros((1, width), np.float32)
        for name, width in parts.items()})


def _missing(value: Any, parts: Mapping[str, int]) -> dict[str, bool]:
    value = dict.fromkeys(parts, value) if isinstance(value, bool) else {} if value is None else value
    if not isinstance(value, dict) or not value.keys() <= parts.keys() or not all(
            isinstance(each, bool) for each in value.values()):
        raise ValueError(f"missing is a bool, nil, or maps some of {', '.join(parts)} to bools, got {_shown(value)}")
    return {name: value.get(name, False) for name in parts}


def _numbers(name: str, array: Any, width: int) -> np.ndarray:
    """[1, width] float32 of an array of a message; what lies beyond float32 is not finite then, so missing."""
    if not isinstance(array, dict) or array.keys() != {"dtype", "shape", "data"}:
        raise ValueError(f"{name} is an array {{dtype, shape, data}}, got {_shown(array)}")
    kind, shape, data = array["dtype"], array["shape"], array["data"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{name} has dtype {_shown(kind)}, wanted is one of {', '.join(sorted(KINDS))}")
    if not isinstance(shape, list) or not all(_whole(size, 1, width) for size in shape) or math.prod(shape) != width:
        raise ValueError(f"{name} has {width} numbers, got shape {_shown(shape)}")
    if not isinstance(data, bytes) or len(data) != width * np.dtype(kind).itemsize:
        raise ValueError(f"{name} of {width} {kind} needs {width * np.dtype(kind).itemsize} bytes, got "
                         f"{len(data) if isinstance(data, bytes) else _shown(data)}")
    with np.errstate(all="ignore"):
        return np.frombuffer(data, kind).astype(np.float32).reshape(1, width)


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _real(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _shown(value: Any) -> str:
    return f"{', '.join(map(str, value)) if isinstance(value, dict) else value!r}"[:80]
