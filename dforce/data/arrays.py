"""Arrays in HDF5 and npz files of others, read without leaving the file or believing the sizes that they declare."""

import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.files import replacing
from dforce.core.tree import map_state

PACKED = 1100    # times that compression shrinks numbers at most (deflate: 1,032)
SMALL = 2**28    # bytes that are read whatever is stored of them, for filters that pack equal numbers better
SOFT_LINKS = 16  # that are followed, one after another
Shape = tuple[int, ...]


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
    except (OSError, RuntimeError, KeyError, MemoryError, TypeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or incomplete ({_text(error)}); restore or generate it again") from error


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


def read_part(group: Any, path: str = "", unread: Collection[str] = ()) -> Any:
    """The array at a path; of a group the arrays by name, groups in it as mappings of their own.

    unread: names in the file of arrays that are given as h5py has them, without being read.
    """
    import h5py

    node = part(group, path)
    if isinstance(node, h5py.Group):
        return {name: read_part(node, name, unread) for name in node}
    return checked_array(node) if node.name in unread else checked_array(node)[()]


def _text(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error) or type(error).__name__


def read_npz(path: str | Path, what: str) -> dict[str, Tensor]:
    """The arrays of an .npz file, by name. FileNotFoundError, or ValueError that says that it is no file of `what`."""
    try:
        require_honest_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
        wrong = [f"{name} is {values.dtype}" for name, values in arrays.items() if values.dtype.kind not in "fiub"]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}, wanted are real numbers")
        return {name: torch.from_numpy(values) for name, values in arrays.items()}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError,
            RuntimeError) as error:
        raise ValueError(f"{path} is no .npz file of {what}: {error}") from error


def write_npz(path: str | Path, arrays: Mapping[str, Tensor]) -> None:
    """What `read_npz` reads, through a temporary name: a reader never sees half a file."""
    with replacing(Path(path)) as partial, open(partial, "wb") as file:
        np.savez(file, **map_state(lambda leaf: leaf.detach().cpu(), dict(arrays)))


def array_header(stream: IO[bytes]) -> tuple[Shape, bool, np.dtype]:
    """Shape, Fortran order and type of the npy array in a stream, which then stands at the array's first byte."""
    version = np.lib.format.read_magic(stream)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(stream)
    if any(side < 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, fortran, dtype


def require_stored(shape: Shape, dtype: np.dtype, stored: int) -> None:
    """ValueError where an array is larger than the bytes that are stored of it."""
    declared = math.prod(shape) * dtype.itemsize
    if declared > stored:
        raise ValueError(f"it declares {shape} {dtype}, {declared / 1e9:,.3f} GB, and {stored / 1e9:,.3f} are stored")


def unpacked_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes that a member can unpack to, whatever it declares."""
    packed = min(info.compress_size, os.path.getsize(str(archive.filename)))
    return min(info.file_size, packed if info.compress_type == zipfile.ZIP_STORED else max(SMALL, packed * PACKED))


def require_honest_sizes(path: str | os.PathLike, members: tuple[str, ...] | None = None) -> None:
    """ValueError where an array of an npz (members: only those), or of an npy, declares more than is stored."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            shape, _, dtype = array_header(file)
            require_stored(shape, dtype, os.path.getsize(path) - file.tell())
        return
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if members is not None and name not in members or not info.filename.endswith(".npy"):
                continue
            with archive.open(info) as member:
                shape, _, dtype = array_header(member)
                try:
                    require_stored(shape, dtype, unpacked_bytes(archive, info) - member.tell())
                except ValueError as error:
                    raise ValueError(f"{name!r}: {error}") from error
