"""Arrays of zarr's format 2, in a folder or a zip file, read without zarr; numcodecs unpacks them.

Of compressors only those are used that are told how much they may unpack. A chunk that is not stored holds the fill
value. Source: the zarr storage specification, version 2.
"""

import json
import math
import os
import re
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.arrays import PACKED, SMALL, unpacked_bytes
from dforce.data.robot_formats.layout import LayoutError, counted, reading
from dforce.data.seal import leads_out

CODECS = {"blosc", "zstd", "lz4", "zlib", "gzip"}
NEEDED = "compressed zarr arrays need numcodecs: pip install 'dforce[robots]'"
KEPT = 4  # slabs of an array that stay in memory


class Store:
    """The files of a zarr group by name: a folder, or a zip file in which it may lie in a folder."""

    def __init__(self, path: Path, marker: str) -> None:
        """marker: a file of the group. LayoutError where it is not there."""
        self.path = path
        with reading(path):
            if path.is_dir():
                files = (file for file in path.rglob("*") if file.is_file())
                self.sizes = {file.relative_to(path).as_posix(): file.stat().st_size for file in files}
                self.archive, self.head = None, ""
            else:
                try:
                    self.archive = zipfile.ZipFile(path)
                except zipfile.BadZipFile as error:
                    raise ValueError(str(error)) from error
                self.sizes = {each.filename: unpacked_bytes(self.archive, each) for each in self.archive.infolist()}
                heads = [name.removesuffix(marker) for name in self.sizes if name.endswith(marker)]
                if len(heads) != 1:
                    raise ValueError(f"{len(heads)} files called {marker}, wanted is one")
                self.head = heads[0]

    def names(self, folder: str) -> dict[str, int]:
        """Names below a folder, without it, and the sizes of the files in bytes."""
        start = f"{self.head}{folder}/"
        return {name.removeprefix(start): size for name, size in self.sizes.items() if name.startswith(start)}

    def read(self, name: str) -> bytes:
        """The bytes of a file."""
        where = f"{self.path}: {name}"
        if self.archive is None:
            if leads_out(self.path / name, self.path):
                raise LayoutError(f"{where} is a link out of the folder, which is not followed; put the file there")
            with reading(where):
                return (self.path / name).read_bytes()
        with reading(where):
            try:
                with self.archive.open(f"{self.head}{name}") as member:
                    return member.read(self.sizes[f"{self.head}{name}"])
            except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
                raise ValueError(str(error)) from error


@dataclass
class ZarrArray:
    """An array in a store.

    chunks: shape of its pieces. files: place of a piece in their grid -> name of its file. slabs: those read last.
    """

    store: Store
    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype
    order: str
    fill: Any
    compressor: dict[str, Any] | None
    files: dict[tuple[int, ...], str]
    slabs: OrderedDict[int, np.ndarray] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, index: np.ndarray) -> np.ndarray:
        """[n, ...], rows by number."""
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        slabs = index // self.chunks[0]
        for number in np.unique(slabs):
            here = slabs == number
            if number not in self.slabs:
                self.slabs[int(number)] = self._slab(int(number))
                while len(self.slabs) > KEPT:
                    self.slabs.popitem(last=False)
            out[here] = self.slabs[int(number)][index[here] - number * self.chunks[0]]
        return out

    def _slab(self, number: int) -> np.ndarray:
        """All pieces that begin at row number * chunks[0], joined."""
        begin = number * self.chunks[0]
        out = np.full((min(self.chunks[0], len(self) - begin), *self.shape[1:]), self.fill, self.dtype)
        for place, name in self.files.items():
            if place[0] == number:
                inner = (slice(i * side, (i + 1) * side) for i, side in zip(place[1:], self.chunks[1:], strict=True))
                target = out[(slice(None), *inner)]
                target[...] = self._piece(name)[tuple(map(slice, target.shape))]
        return out

    def _piece(self, name: str) -> np.ndarray:
        where, size = f"{self.store.path}: {self.name}/{name}", math.prod(self.chunks) * self.dtype.itemsize
        stored = self.store.read(f"{self.name}/{name}")
        with reading(where):
            if self.compressor is not None:
                stored = _unpacked(stored, self.compressor, size)
            if len(stored) != size:
                raise ValueError(f"it has {len(stored):,} bytes, a piece of {self.chunks} {self.dtype} has {size:,}")
            return np.frombuffer(stored, self.dtype).reshape(self.chunks, order=self.order)  # type: ignore[call-overload]


def _unpacked(stored: bytes, compressor: dict[str, Any], size: int) -> bytes:
    """Bytes as they were before a compressor packed them. ValueError for more or fewer than `size`."""
    if compressor["id"] in ("zlib", "gzip"):
        engine = zlib.decompressobj(wbits=31 if compressor["id"] == "gzip" else zlib.MAX_WBITS)
        try:
            return engine.decompress(stored, size + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
    try:
        import numcodecs
    except ImportError as error:
        raise ModuleNotFoundError(NEEDED, name="numcodecs") from error
    out = np.empty(size, np.uint8)
    try:
        numcodecs.get_codec({"id": compressor["id"]}).decode(stored, out=out)
    except (RuntimeError, MemoryError) as error:
        raise ValueError(str(error) or "it is damaged") from error
    return out.tobytes()


def zarr_array(store: Store, name: str) -> ZarrArray:
    """The array `name` of a store. LayoutError for what declares more than is stored, or is packed in another way."""
    where = f"{store.path}: {name}/.zarray"
    raw = store.read(f"{name}/.zarray")
    with reading(where):
        about = json.loads(raw)
        shape = tuple(counted(side, "a side") for side in about["shape"])
        chunks = tuple(counted(side, "a side of chunks", 1) for side in about["chunks"])
        dtype, compressor = np.dtype(str(about["dtype"])), about.get("compressor")
        if about.get("zarr_format") != 2 or dtype.kind not in "fiub" or len(shape) != len(chunks) or not shape:
            raise ValueError(f"zarr format {about.get('zarr_format')}, {dtype}, shape {shape} in chunks of {chunks}; "
                             "wanted are arrays of numbers in format 2")
        if about.get("filters") or compressor is not None and compressor["id"] not in CODECS:
            kind = about.get("filters") or compressor["id"]
            raise LayoutError(f"{where}: it is packed with {kind}; {', '.join(sorted(CODECS))} are read: save it anew")
        files, stored, holes = _pieces(store.names(name), len(shape), shape, chunks)
        declared, piece = math.prod(shape) * dtype.itemsize, math.prod(chunks) * dtype.itemsize
        if max(declared, piece) > max(SMALL, stored * PACKED):
            raise ValueError(f"it declares {declared / 1e9:,.1f} GB in pieces of {piece / 1e9:,.1f} GB, of which "
                             f"{stored / 1e9:,.3f} GB are stored")
        if holes:
            warnings.warn(f"{where}: {holes} of the array's pieces are not stored; by zarr's rule they hold the value "
                          f"{about.get('fill_value')}: are files lost?", stacklevel=4)
        fill = about.get("fill_value") or 0
        number = np.asarray(float(fill) if isinstance(fill, str) else fill).astype(dtype)
        return ZarrArray(store, name, shape, chunks, dtype, str(about.get("order", "C")), number, compressor, files)


def _pieces(names: dict[str, int], sides: int, shape: Sequence[int], chunks: Sequence[int]
            ) -> tuple[dict[tuple[int, ...], str], int, int]:
    """Place in the grid -> file, how many bytes they have together, and how many places have none.

    Either of `.` and `/` is between the numbers of a place.
    """
    places = {tuple(map(int, re.split(r"[./]", name))): name for name in names
              if re.fullmatch(r"\d{1,12}([./]\d{1,12})*", name)}
    grid = [-(-side // chunk) for side, chunk in zip(shape, chunks, strict=True)]
    files = {place: name for place, name in places.items()
             if len(place) == sides and all(i < most for i, most in zip(place, grid, strict=True))}
    return files, sum(names[name] for name in files.values()), math.prod(grid) - len(files)


def is_zarr(path: Path, marker: str) -> bool:
    """Does a folder, or a zip file, hold a zarr group with a file of that name?"""
    if path.is_dir():
        return (path / marker).is_file()
    if path.suffix != ".zip" or not os.path.isfile(path) or not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(marker) for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return False
