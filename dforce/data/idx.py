"""Labelled images in IDX files, the format of MNIST and Fashion-MNIST, whose declared sizes are not believed."""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from dforce.data.arrays import PACKED

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
GARMENTS = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
PARTS = {"train": "train", "test": "t10k"}
BYTES = 8      # the type of numbers that is read: unsigned bytes
MOST_DIMS = 4


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or not. ValueError, which names the file, for what is no such array."""
    stored = path.stat().st_size
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _array(file, stored * (PACKED if path.suffix == ".gz" else 1))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is no whole IDX file of bytes ({error}); get it again") from error


def _array(file: io.BufferedIOBase, most: int) -> np.ndarray:
    """most: bytes that the file can hold."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != BYTES or not 1 <= head[3] <= MOST_DIMS:
        raise ValueError(f"it begins with {head.hex(' ')}, wanted 00 00 {BYTES:02x} and 1 to {MOST_DIMS} dimensions")
    sizes = file.read(4 * head[3])
    if len(sizes) < 4 * head[3]:
        raise ValueError("it ends among its sizes")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    count = math.prod(shape)
    if count > most:
        raise ValueError(f"it declares {shape}, {count:,} bytes, of which it can hold {most:,}")
    numbers = file.read(count + 1)
    if len(numbers) != count:
        held = "more" if len(numbers) > count else f"{len(numbers):,}"
        raise ValueError(f"it declares {shape}, {count:,} bytes, and holds {held}")
    return np.frombuffer(numbers, np.uint8).reshape(shape)


def idx_folder(folder: Path) -> bool:
    """Does it hold the four files of an IDX set?"""
    return all(_file(folder, part, kind) is not None for part in PARTS.values() for kind in ("images-idx3",
                                                                                             "labels-idx1"))


def idx_images(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Pixels [N, H, W] uint8, labels [N] int64 and names of classes of "train", "test" or both ("all").

    In the order of the files; classes have numbers as names but those of a folder called fashion.
    """
    parts = {name: _part(folder, part) for name, part in PARTS.items()}
    if len({pixels.shape[1:] for pixels, _ in parts.values()}) > 1:
        raise ValueError(f"the images of {folder} have several sizes, "
                         f"{' and '.join(str(pixels.shape[1:]) for pixels, _ in parts.values())}")
    count = 1 + max(int(label.max()) for _, label in parts.values())
    classes = GARMENTS if "fashion" in folder.name else tuple(map(str, range(count)))
    if count > len(classes):
        raise ValueError(f"{folder} has labels up to {count - 1}, Fashion-MNIST {len(classes)} classes")
    pixels, label = zip(*(part for name, part in parts.items() if split in (name, "all")), strict=True)
    return np.concatenate(pixels), np.concatenate(label), classes


def _part(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    files = [_file(folder, part, kind) for kind in ("images-idx3", "labels-idx1")]
    pixels, label = (read_idx(file) for file in files if file is not None)
    if pixels.ndim != 3 or label.shape != pixels.shape[:1] or not pixels.size:
        raise ValueError(f"{folder}: images {pixels.shape} and labels {label.shape} of {part} do not belong together")
    return pixels, label.astype(np.int64)


def _file(folder: Path, part: str, kind: str) -> Path | None:
    names = (f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-', '.')}-ubyte")  # the second: as some unpackers name it
    return next((path for name in names for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
