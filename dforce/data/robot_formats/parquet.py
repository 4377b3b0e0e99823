"""Columns of parquet files as numpy arrays. pyarrow is imported where a file is read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.arrays import PACKED, SMALL

NEEDED = "LeRobot data lie in parquet files, which need pyarrow: pip install 'dforce[robots]'"


def arrow() -> Any:
    """pyarrow with its parquet part; ModuleNotFoundError that says how to install it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ModuleNotFoundError(NEEDED, name="pyarrow") from error
    return pyarrow


def read_table(path: Path, columns: Sequence[str] | None = None, group: int | None = None) -> Any:
    """The pyarrow.Table of a file, or of one row group of it.

    columns: those to read (missing ones are left out), None for all. ValueError, which names the file, for one that is
    missing, damaged, or declares more than it can hold.
    """
    pa = arrow()
    try:
        with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = [name for name in file.schema_arrow.names if columns is None or name in columns]
            declared = _declared(file.metadata, names)
            if declared > max(SMALL, path.stat().st_size * PACKED):
                raise ValueError(f"it declares {declared / 1e9:,.1f} GB in {path.stat().st_size:,} bytes")
            return file.read(columns=names) if group is None else file.read_row_group(group, columns=names)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; restore the data set, or download it again") from error
    except (pa.ArrowException, OSError, ValueError, MemoryError, OverflowError, KeyError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"{path} is damaged or no parquet file ({said}); restore it") from error


def row_group_ends(path: Path) -> np.ndarray:
    """Rows of a file up to the end of each of its row groups."""
    metadata = arrow().parquet.read_metadata(path)
    return np.cumsum([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])


def _declared(metadata: Any, names: Sequence[str]) -> int:
    """Bytes that the columns have when they are read, as the file says."""
    total = metadata.num_rows * len(names)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.partition(".")[0] in {name.partition(".")[0] for name in names}:
                total += max(column.num_values * 8, column.total_uncompressed_size)
    return total


def column_values(table: Any, name: str, path: Path) -> np.ndarray:
    """A column of numbers, or of lists of equally many, as [rows, width]. ValueError names file and column."""
    pa = arrow()
    array, where = table.column(name).combine_chunks(), f"{path}: {name}"
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    while True:
        if array.null_count:
            raise ValueError(f"{where} has no value in {array.null_count} of {len(array)} places")
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
            continue
        if not hasattr(array, "flatten") or not pa.types.is_nested(array.type) or pa.types.is_struct(array.type):
            break
        inner = array.flatten()
        lengths = set(pa.compute.list_value_length(array).unique().to_pylist())
        if len(lengths) > 1:
            raise ValueError(f"{where} has rows of different lengths: {sorted(lengths)[:4]}")
        array = inner
    kind = array.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"{where} holds {kind} values, wanted are numbers")
    values = array.to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, -1) if table.num_rows else values.reshape(0, 1)
