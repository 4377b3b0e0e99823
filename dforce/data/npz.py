"""Tensors in .npz files."""

import os
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dforce.core.tree import map_state
from dforce.data.array_sizes import require_honest_sizes


def read_npz(path: str | Path, what: str) -> dict[str, Tensor]:
    """The arrays of an .npz file, by name. FileNotFoundError, or ValueError that says that it is no file of `what`."""
    try:
        require_honest_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError,
            RuntimeError) as error:
        raise ValueError(f"{path} is no .npz file of {what}: {error}") from error


def write_npz(path: str | Path, arrays: Mapping[str, Tensor]) -> None:
    """What `read_npz` reads, through a temporary name: a reader never sees half a file."""
    temporary = Path(f"{path}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **map_state(lambda leaf: leaf.detach().cpu(), dict(arrays)))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
