"""What became of every injected fault, and the table of all of them."""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dforce.report.rows import Row, make_row

REPORTED, HARMLESS, SILENT, RAW, LOST = OUTCOMES = ("reported", "harmless", "silent", "raw error", "lost work")


class Fault(NamedTuple):
    """One injected fault."""

    kind: str  # of the table's row
    what: str  # enough to inject it again
    outcome: str


def judged(kind: str, what: str, read: Callable[[], Any], intact: Any = None, *, always: bool = False) -> Fault:
    """The fault of a reader: an error of one line is a report, what is as it was is harmless.

    intact: what the reader gives where nothing is wrong. always: the fault must be reported.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            value = read()
        except (ValueError, OSError, FloatingPointError) as error:
            right = 0 < len(str(error)) < 2000
            return Fault(kind, f"{what}: {type(error).__name__}: {error}", REPORTED if right else RAW)
        except Exception as error:
            return Fault(kind, f"{what}: {type(error).__name__}: {error}", RAW)
    if not always and equal(value, intact):
        return Fault(kind, what, HARMLESS)
    named = [str(warning.message) for warning in warned if issubclass(warning.category, UserWarning)]
    return Fault(kind, f"{what}: {named}", REPORTED if named else SILENT)


def equal(one: Any, other: Any) -> bool:
    """Are two nests of values and arrays the same, bit for bit?"""
    if isinstance(one, torch.Tensor) or hasattr(one, "dtype"):
        one, other = torch.as_tensor(one), torch.as_tensor(other)
        return one.shape == other.shape and one.dtype == other.dtype and bool(torch.equal(one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def kept(file: Path, faults: Iterable[Fault]) -> list[Fault]:
    """Those that the file has of an earlier call, then the others, each written down as it comes."""
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    done = [Fault(*json.loads(line)) for line in lines]
    with file.open("a", encoding="utf-8") as stream:
        for fault in faults:
            done.append(fault)
            stream.write(json.dumps(fault) + "\n")
            stream.flush()
            if fault.outcome in (SILENT, RAW, LOST):
                print(f"{fault.outcome}: {fault.kind}, {re.sub(os.linesep, ' ', fault.what)[:400]}", flush=True)
    return done


def rows_of(faults: list[Fault]) -> list[Row]:
    """How many faults of each kind had each outcome, and of all kinds."""
    kinds = ["all", *dict.fromkeys(fault.kind for fault in faults)]
    counts = {kind: [fault.outcome for fault in faults if kind in ("all", fault.kind)] for kind in kinds}
    return [make_row("faults", kind, outcome, outcomes.count(outcome), n=len(outcomes), unit="faults", higher=None)
            for kind, outcomes in counts.items() for outcome in OUTCOMES]


def table(faults: list[Fault]) -> str:
    """A line a kind: injected, and what became of them."""
    rows = rows_of(faults)
    lines = [f"{'kind':<28}{'injected':>10}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES)]
    for kind in dict.fromkeys(row["method"] for row in rows):
        each = [row for row in rows if row["method"] == kind]
        lines.append(f"{kind:<28}{each[0]['n']:>10}" + "".join(f"{row['value']:>11.0f}" for row in each))
    return "\n".join(lines)
