"""What robot data sets of other libraries have in common: JSON that is read with care, and paths that stay inside."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dforce.data.seal import leads_out

FIELD = re.compile(r"\{(\w+)(?::0?(\d{1,2})d)?\}")  # {name}, {name:03d}; nothing else of Python's format language


class LayoutError(ValueError):
    """A data set that is not laid out as its library publishes it; the message says where, and what to do."""


@contextmanager
def reading(where: Path | str) -> Iterator[None]:
    """LayoutError, which names `where`, for whatever its content lacks or has of another kind."""
    try:
        yield
    except LayoutError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError, RecursionError,
            OSError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0] or type(error).__name__
        raise LayoutError(f"{where} cannot be read ({said}); restore the data set, or download it again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it is no JSON object")
        return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file, one a line."""
    with reading(path):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError("a line is no JSON object")
        return rows


def inside(root: Path, template: str, **values: int | str) -> Path:
    """The file that a template with fields {name} or {name:03d} names in a folder. LayoutError where it leads out."""
    with reading(root / "meta" / "info.json"):
        text = FIELD.sub(lambda m: f"{int(values[m[1]]):0{m[2]}d}" if m[2] else str(values[m[1]]), template)
        if "{" in text or "\0" in text:
            raise ValueError(f"{template!r} is no template of a path")
    path = root / text
    if leads_out(path, root):
        raise LayoutError(f"{root}: {text!r} leads out of the data set, which is not followed; put the file itself "
                          "there (a copy of a cache: cp -rL)")
    return path


def counted(value: Any, name: str, low: int = 0, high: int = 2**40) -> int:
    """A whole number from a file, checked against its range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name} is {value!r}, wanted is a whole number in {low}..{high}")
    return value
