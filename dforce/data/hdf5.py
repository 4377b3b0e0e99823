"""HDF5 files of others, read without leaving the file and without believing the sizes that they declare."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

PACKED = 1100    # times that compression shrinks numbers at most (deflate: 1,032)
SMALL = 2**28    # bytes that are read whatever is stored of them, for filters that pack equal numbers better
SOFT_LINKS = 16  # that are followed, one after another


class Hdf5Error(ValueError):
    """A file refers to other files, or declares arrays that it does not hold; the message says which part."""


@contextmanager
def open_hdf5(path: str | os.PathLike) -> Iterator[Any]:
    """The open h5py.File; ValueError, which names the file, for whatever is wrong with it while it is open."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except Hdf5Error as error:
        raise ValueError(f"{path}: {error}") from error
    except (OSError, RuntimeError, KeyError, MemoryError, TypeError, OverflowError) as error:
        raise ValueError(f"{path} is damaged or incomplete, or no HDF5 file ({_text(error)}); restore it or generate "
                         "it again") from error


def part(group: Any, path: str, links: int = 0) -> Any:
    """The group or array at a path. KeyError where there is none, Hdf5Error for one that lies in another file."""
    import h5py

    for name in filter(None, path.split("/")):
        if not isinstance(group, h5py.Group) or not group.id.links.exists(name.encode()):
            raise KeyError(f"{group.name} has no {name}")
        kind = group.id.links.get_info(name.encode()).type
        if kind == h5py.h5l.TYPE_SOFT and links < SOFT_LINKS:
            target = group.id.links.get_val(name.encode()).decode()
            group = part(group.file if target.startswith("/") else group, target, links + 1)
        elif kind == h5py.h5l.TYPE_HARD:
            group = group[name]
        else:
            raise Hdf5Error(f"{group.name.rstrip('/')}/{name} is a link out of the file; store the array itself there")
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise Hdf5Error(f"the numbers of {group.name} lie in other files; store them in this one")
    return group


def checked_array(dataset: Any) -> Any:
    """An array of a file, not yet read, if the file holds as many numbers as it declares; else Hdf5Error."""
    declared = int(np.prod(dataset.shape or (), dtype=object)) * dataset.id.get_type().get_size()
    stored = min(dataset.id.get_storage_size(), Path(dataset.file.filename).stat().st_size)
    packed = dataset.id.get_create_plist().get_nfilters() > 0
    if declared > max(SMALL, stored * (PACKED if packed else 1)):
        raise Hdf5Error(f"{dataset.name} declares {dataset.shape} {dataset.dtype}, {declared / 1e9:,.1f} GB, of which "
                        f"{stored / 1e9:,.3f} GB are stored")
    return dataset


def read_part(group: Any, path: str = "") -> Any:
    """The array at a path; of a group the arrays by name, groups in it as mappings of their own."""
    import h5py

    node = part(group, path)
    if isinstance(node, h5py.Group):
        return {name: read_part(node, name) for name in node}
    return checked_array(node)[()]


def _text(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__
