"""Sizes that npz and npy files declare, held against what the files hold before anything is allocated."""

import math
import os
import zipfile
from typing import IO

import numpy as np

from dforce.data.hdf5 import PACKED, SMALL

Shape = tuple[int, ...]


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
        raise ValueError(f"it declares {shape} {dtype}, {declared / 1e9:,.3f} GB, of which at most {stored / 1e9:,.3f} "
                         "GB are stored")


def unpacked_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes that a member can unpack to, whatever it declares."""
    packed = min(info.compress_size, os.path.getsize(str(archive.filename)))
    return min(info.file_size, packed if info.compress_type == zipfile.ZIP_STORED else max(SMALL, packed * PACKED))


def require_honest_sizes(path: str | os.PathLike, members: tuple[str, ...] | None = None) -> None:
    """ValueError where an array of an npz (members: only those), or that of an npy, declares more than is stored.

    OSError, zipfile.BadZipFile or EOFError where the file is damaged.
    """
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
