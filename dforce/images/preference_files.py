"""Preferences about pictures in public layouts: Pick-a-Pic's columns, and Hugging Face's imagefolder."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dforce.data.pixels import PictureError, read_picture
from dforce.data.seal import leads_out

Fit = Callable[[np.ndarray], np.ndarray]  # a picture, uint8 [H, W, C], as it is wanted
TEXTS, RATINGS = ("caption", "prompt", "text"), ("rating", "score")
SIDES = (("jpg_0", "jpg_1"), ("image_0", "image_1"))
ROWS = 64  # of a parquet file at a time


class PicturePairs(NamedTuple):
    """P pairs, the first preferred."""

    win: list[np.ndarray]   # uint8 [H, W, C]
    lose: list[np.ndarray]
    text: list[str]         # the prompt of each
    tie: list[bool]


class PictureRatings(NamedTuple):
    """N pictures and what they were given."""

    picture: list[np.ndarray]
    rating: list[float]


def read_preferences(source: str | Path, fit: Fit, *, user: str | int | None = None,
                     limit: int | None = None) -> PicturePairs | PictureRatings:
    """Pairs, or ratings, of a .parquet or .jsonl file, or of a folder with metadata.jsonl or .parquet files.

    Pairs have the columns of Pick-a-Pic (Kirstain et al. 2023): caption, jpg_0 and jpg_1, label_0 (1 where the first
    is preferred, 0 the second, .5 neither), user_id and has_label if there are such. Other names that are read: prompt
    or text, image_0 and image_1, label (the number of the preferred one). Ratings have file_name or image, and rating
    or score. An image is the bytes of a file, {"bytes": ...}, or in .jsonl the path of a file beside it, under its name
    or, as imagefolder has it, with _file_name behind. user: only rows of this user_id.
    limit: only so many rows. ValueError names the row.
    """
    rows, kind = 0, ""
    pairs, ratings = PicturePairs([], [], [], []), PictureRatings([], [])
    for where, row, folder in _rows(Path(source)):
        if (user is not None and str(row.get("user_id")) != str(user)) or not row.get("has_label", True):
            continue
        if rows == limit:
            break
        rows += 1
        try:
            sides = [_first(row, (name, f"{name}_file_name")) for names in SIDES for name in names]
            now = "pairs" if any(side is not None for side in sides) else "ratings"
            if kind not in ("", now):
                raise ValueError(f"has {now} where rows before have {kind}")
            kind = now
            if now == "pairs":
                both = [fit(_picture(side, folder)) for side in sides if side is not None]
                _add_pair(pairs, row, both)
            else:
                rating = float(_needed(row, RATINGS))
                ratings.picture.append(fit(_picture(_needed(row, ("file_name", "image")), folder)))
                ratings.rating.append(rating)
        except (ValueError, TypeError, OSError) as error:
            raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
    if not rows:
        raise ValueError(f"{source} has no preferences{f' of user {user!r}' if user is not None else ''}")
    return pairs if kind == "pairs" else ratings


def _add_pair(pairs: PicturePairs, row: Mapping[str, Any], both: list[np.ndarray]) -> None:
    if len(both) != 2:
        known = " or ".join(" and ".join(names) for names in SIDES)
        raise ValueError(f"a pair has two images, {known}, got {len(both)}")
    if row.get("label_0") is not None:
        first = float(row["label_0"])
    else:
        first = {0: 1.0, 1: 0.0}.get(_needed(row, ("label_0", "label")), np.nan)
    if not 0 <= first <= 1:
        raise ValueError(f"label_0 lies in 0..1 and label is 0 or 1, got label_0={row.get('label_0')!r}, "
                         f"label={row.get('label')!r}")
    one, other = both
    pairs.win.append(one if first >= 0.5 else other)
    pairs.lose.append(other if first >= 0.5 else one)
    pairs.text.append(str(_first(row, TEXTS) or ""))
    pairs.tie.append(first == 0.5)


def _rows(source: Path) -> Iterator[tuple[str, Mapping[str, Any], Path]]:
    """Of every row: where it stands, what it holds, and the folder that its paths are in."""
    files = [source]
    if source.is_dir():
        listed = source / "metadata.jsonl"
        files = [listed] if listed.is_file() else sorted(source.rglob("*.parquet"))
    if not files or not all(file.is_file() for file in files):
        raise ValueError(f"there are no preferences at {str(source)!r}: give a .parquet or .jsonl file, or a folder "
                         "with metadata.jsonl or .parquet files")
    for file in files:
        for number, row in enumerate(_lines(file) if file.suffix in (".jsonl", ".json") else _parquet(file)):
            yield f"{file}, row {number}", row, file.parent


def _lines(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file}, row {number}: no JSON ({error})") from error
            if isinstance(row, Mapping):
                yield row
            elif row is not None:
                raise ValueError(f"{file}, row {number}: a row is an object, got a {type(row).__name__}")


def _parquet(file: Path) -> Iterator[Mapping[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError("files of parquet need pyarrow: pip install pyarrow", name="pyarrow") from error
    known = {*TEXTS, *RATINGS, *(name for names in SIDES for name in names), "image", "label", "label_0", "has_label",
             "user_id"}
    try:
        with parquet.ParquetFile(file) as table:
            columns = [name for name in table.schema_arrow.names if name in known]
            for batch in table.iter_batches(ROWS, columns=columns):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file} is no file of parquet: {error}") from error


def _picture(value: Any, folder: Path) -> np.ndarray:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        path = folder / value
        if leads_out(path, folder):
            raise ValueError(f"{value} leads out of {folder}")
        value = path.read_bytes()
    if not isinstance(value, bytes):
        raise ValueError(f"an image is the bytes of a file or its path, got a {type(value).__name__}")
    try:
        return read_picture(io.BytesIO(value))
    except PictureError as error:
        raise ValueError(f"its image cannot be read: {error}") from error


def _first(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _needed(row: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    value = _first(row, names)
    if value is None:
        raise ValueError(f"it has no {' or '.join(names)}, but {', '.join(row)}")
    return value
