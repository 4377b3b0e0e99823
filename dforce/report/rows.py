"""The two files that tables and plots are made from: results.json and episodes.jsonl.

results.json is `{"header": {...}, "rows": [...]}`, a row being one number with its interval; not defined is null.
"""

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, cast

import numpy as np

from dforce.report.statistics import Interval, paired_difference

ROW_KEYS = ("task", "method", "variant", "metric", "value", "low", "high", "n", "seeds", "unit", "higher_is_better")
HEADER_KEYS = ("command", "commit", "versions", "machine", "seconds", "peak_memory_mb")
CHECKS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (  # keys of a row, what they are
    (("task", "method", "metric"), "a non-empty string", lambda value: isinstance(value, str) and bool(value)),
    (("unit",), "a string ('' for none)", lambda value: isinstance(value, str)),
    (("variant",), "a flat object of plain values", lambda value: isinstance(value, dict) and not any(
        isinstance(inner, (dict, list)) for inner in value.values())),
    (("value", "low", "high"), "a number or None", lambda value: value is None or type(value) in (int, float)),
    (("n", "seeds"), "a count (0, 1, ...)", lambda value: type(value) is int and value >= 0),
    (("higher_is_better",), "True, False or None", lambda value: value in (True, False, None)))


class Row(TypedDict):
    """One number of results.json. `make_row` builds it."""

    task: str
    method: str
    variant: dict[str, Any]  # what differs inside a method, a flat object
    metric: str
    value: float | None      # None where it is not defined
    low: float | None        # its 95% interval; None where there is none
    high: float | None
    n: int                   # episodes or samples
    seeds: int               # training seeds
    unit: str
    higher_is_better: bool | None  # None where neither is


def make_row(task: str, method: str, metric: str, estimate: Interval | float | None, *, n: int | None = None,
             variant: Mapping[str, Any] | None = None, seeds: int = 1, unit: str = "",
             higher: bool | None = None) -> Row:
    """A row of results.json of an interval, or of a number (None: not defined) without one and of how many it is, n."""
    value, low, high, count = estimate if isinstance(estimate, Interval) else (estimate, None, None, n)
    if count is None:
        raise ValueError(f"{method}, {metric}: give n beside a number that has no interval")
    return Row(task=task, method=method, variant=dict(variant or {}), metric=metric, value=value, low=low, high=high,
               n=count if n is None else n, seeds=seeds, unit=unit, higher_is_better=higher)


def difference_row(task: str, method: str, metric: str, a: np.ndarray, b: np.ndarray, seed: np.ndarray | None = None, *,
                   variant: Mapping[str, Any] | None = None, unit: str = "", higher: bool | None = True) -> Row:
    """The mean of a - b over the same episodes [E], with its interval; seed: of each [E], None for one."""
    seeds = 1 if seed is None else len(np.unique(seed))
    return make_row(task, method, f"{metric}_difference", paired_difference(a, b, seed), variant=variant, seeds=seeds,
                    unit=unit, higher=higher)


class Results(NamedTuple):
    """What a run measured: header (how it was measured) and rows (the numbers)."""

    header: dict[str, Any]
    rows: list[Row]


def check_row(row: Mapping[str, Any], *, where: str = "row") -> Row:
    """The row as plain JSON values, in the order of ROW_KEYS; ValueError names `where` and what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where} must be an object with the keys {', '.join(ROW_KEYS)}, got {type(row).__name__}")
    _check_keys(row, ROW_KEYS, where)
    plain = {key: _plain(row[key], f"{where}, key {key!r}") for key in ROW_KEYS}
    for keys, wanted, fits in CHECKS:
        for key in keys:
            if not fits(plain[key]):
                raise ValueError(f"{where}: {key} must be {wanted}, got {plain[key]!r}")
    low, high = plain["low"], plain["high"]
    if (low is None) != (high is None) or (low is not None and low > high):
        raise ValueError(f"{where}: low and high must both be None or low <= high, got low={low!r}, high={high!r}")
    return cast(Row, plain)


def write_results(file: str | Path, header: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write results.json, checked, through a temporary name: a reader never sees half a file. Returns the file."""
    file = Path(file)
    _check_keys(header, HEADER_KEYS, "header", extra=True)
    plain = {"header": _plain(dict(header), "header"),
             "rows": [check_row(row, where=f"row {number}") for number, row in enumerate(rows)]}
    plain["digest"] = _digest(plain)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".part")
    partial.write_text(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return partial.replace(file)


def _digest(content: Mapping[str, Any]) -> str:
    """sha256 of header and rows; results of other programs, and those of before, have none in their file."""
    text = json.dumps([content.get("header"), content.get("rows")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_results(file: str | Path) -> Results:
    """Read and check a results.json. Raises FileNotFoundError, or ValueError that names the file and the row."""
    file = Path(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); was the run stopped while it wrote?") from error
    if not isinstance(content, dict) or not isinstance(content.get("rows"), list):
        raise ValueError(f'{file} must hold {{"header": {{...}}, "rows": [...]}}, got {type(content).__name__}')
    if content.get("digest", digest := _digest(content)) != digest:
        raise ValueError(f"{file} is damaged: its content does not match its own digest; make the results anew")
    header = content.get("header")
    _check_keys(header if isinstance(header, dict) else {}, HEADER_KEYS, f"{file}: header", extra=True)
    rows = [check_row(row, where=f"{file}: row {number}") for number, row in enumerate(content["rows"])]
    return Results(content["header"], rows)


def append_episodes(file: str | Path, episodes: Iterable[Mapping[str, Any]]) -> Path:
    """Add one line an episode to episodes.jsonl; each is a flat object. Returns the file."""
    file = Path(file)
    lines = []
    for number, episode in enumerate(episodes):
        plain = _plain(dict(episode), f"episode {number}")
        nested = [key for key, value in plain.items() if isinstance(value, (dict, list))]
        if nested:
            raise ValueError(f"episode {number} must be flat, but {nested} hold lists or objects")
        lines.append(json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(lines))
    return file


def write_episodes(file: str | Path, episodes: Iterable[Mapping[str, Any]]) -> Path:
    """Write episodes.jsonl anew, through a temporary name: a reader never sees half a file. Returns the file."""
    file = Path(file)
    partial = file.with_name(file.name + ".part")
    partial.unlink(missing_ok=True)  # left by a process that was killed
    return append_episodes(partial, episodes).replace(file)


def read_episodes(file: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the episodes of an episodes.jsonl; ValueError names the line that cannot be read."""
    with Path(file).open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from error


def filter_rows(rows: Iterable[Row], *, variant: Mapping[str, Any] | None = None, **equal: Any) -> list[Row]:
    """Rows whose keys equal `equal` and whose variant holds every pair of `variant`. A tuple or list means any of them.

    `filter_rows(rows, method=("straight", "controller"), metric="score", variant={"starts": "blocked"})`
    """
    unknown = [key for key in equal if key not in ROW_KEYS]
    if unknown:
        raise ValueError(f"cannot select by {unknown}: a row has the keys {', '.join(ROW_KEYS)}")

    def meets(value: Any, wanted: Any) -> bool:
        return value in wanted if isinstance(wanted, (tuple, list, set)) else value == wanted

    return [row for row in rows if all(meets(cast(dict, row)[key], wanted) for key, wanted in equal.items())
            and all(key in row["variant"] and meets(row["variant"][key], wanted) for key,
                    wanted in (variant or {}).items())]


def settled(low: float | None, high: float | None) -> bool:
    """Does the interval of a difference leave zero out? False where there is none."""
    return low is not None and high is not None and (low > 0 or high < 0)


def _check_keys(mapping: Mapping[str, Any], keys: Sequence[str], where: str, *, extra: bool = False) -> None:
    """Every key present and, unless `extra`, none besides; a misspelt one is answered with the nearest."""
    unknown = [] if extra else [str(key) for key in mapping if key not in keys]
    for key in unknown:
        near = difflib.get_close_matches(key, keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(keys)}; what differs goes in variant"
        raise ValueError(f"{where} has an unknown key {key!r}: {hint}")
    missing = [key for key in keys if key not in mapping]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(map(repr, missing))}; it has {', '.join(map(str, mapping))}")


def _plain(value: Any, where: str) -> Any:
    """Plain JSON values: numpy and torch scalars become numbers; anything else, and NaN, is refused by name."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which JSON cannot hold; write None for 'not defined'")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise ValueError(f"{where} must be a plain value, got {type(value).__name__}")
