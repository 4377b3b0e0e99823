"""Pictures in Minari data sets, read when they are asked for: what a camera saw is larger than memory."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dforce.data.arrays import checked_array, open_hdf5, part
from dforce.data.columns import is_picture
from dforce.data.pixels import read_picture

MAIN = "main_data.hdf5"  # Minari's file of all episodes
DENSE = 8  # times as many pictures as are wanted are read at most


@dataclass(frozen=True)
class Camera:
    """Where the pictures of one camera lie in a Minari data set.

    data: its data folder. leaf: keys of the pictures in an observation, as they are stored. shape: of a picture, as
    stored. jpeg: each is a JPEG file. hdf5: single pictures can be read; of other formats whole episodes.
    """

    data: str
    leaf: tuple[str, ...]
    shape: tuple[int, ...]
    jpeg: bool = False
    hdf5: bool = True

    @property
    def channels_first(self) -> bool:
        return self.shape[0] in (1, 3) and self.shape[2] not in (1, 3)

    @property
    def size(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        a, b, c = self.shape
        return (b, c, a) if self.channels_first else (a, b, c)

    def read(self, episode: int, index: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C], pictures of an episode by number. ValueError for others than its space says."""
        try:
            stored = self._hdf5(episode, index) if self.hdf5 else self._other(episode, index)
        except (OSError, KeyError, RuntimeError, IndexError, TypeError) as error:
            raise ValueError(f"episode_{episode} of {self.data} cannot be read ({error})") from error
        frames = np.ascontiguousarray(np.moveaxis(stored, 1, -1)) if self.channels_first else stored
        if frames.dtype != np.uint8 or frames.shape[1:] != self.size:
            raise ValueError(f"episode_{episode}: its observations are {frames.dtype} {frames.shape[1:]}, its space "
                             f"says uint8 {self.size}")
        return frames

    def _hdf5(self, episode: int, index: np.ndarray) -> np.ndarray:
        with open_hdf5(Path(self.data) / MAIN) as file:
            stored = checked_array(part(file, "/".join([f"episode_{episode}", "observations", *self.leaf])))
            unique, inverse = np.unique(index, return_inverse=True)  # h5py wants each row once
            first, span = (unique[0], unique[-1] + 1 - unique[0]) if len(unique) else (0, 0)
            # h5py takes five times as long to pick rows as to read all of them
            rows = stored[first:first + span][unique - first] if span < DENSE * len(unique) else stored[unique]
        if self.jpeg and rows.ndim < 4:  # bytes of a file in each row; pictures are stored whole where it is 4
            rows = np.stack([read_picture(io.BytesIO(np.asarray(row, np.uint8).tobytes())) for row in rows])
        return rows[inverse]

    def _other(self, episode: int, index: np.ndarray) -> np.ndarray:
        value = stored_episode(self.data, episode)["observations"]
        for key in self.leaf:
            value = value[int(key.removeprefix("_index_"))] if isinstance(value, tuple) else value[key]
        return np.asarray(value)[index]


class PictureSource(Protocol):
    """What gives the pictures of a camera, episode by episode. size: (H, W, C)."""

    @property
    def size(self) -> tuple[int, ...]: ...

    def read(self, episode: int, index: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, C], pictures of an episode by number."""
        ...


class EpisodePictures:
    """uint8 [N + E, H, W, 3], what a camera saw in all episodes of a data set: `Episodes.images` holds such.

    Rows are read from the file when they are asked for, by an array of whole numbers, a slice or one number; grey
    pictures are repeated for the three colours.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, camera: PictureSource, rows: Sequence[int] | np.ndarray):
        """rows: [E], pictures of each episode."""
        self.camera, self._ends = camera, np.cumsum(rows)
        self.shape = (int(self._ends[-1]), *camera.size[:2], 3)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        index = np.arange(len(self))[rows]
        flat = np.atleast_1d(index)
        episodes = np.searchsorted(self._ends, flat, side="right")
        out = np.empty((len(flat), *self.shape[1:]), np.uint8)
        for episode in np.unique(episodes):
            here = episodes == episode
            begin = self._ends[episode - 1] if episode else 0
            out[here] = self.camera.read(int(episode), flat[here] - begin)
        return out.reshape(*index.shape, *self.shape[1:])


def stored_cameras(space: Any, data: Path, *, jpeg: bool, hdf5: bool, leaf: tuple[str, ...] = ()) -> dict[str, Camera]:
    """The cameras in a space of observations, by the names of their columns: "a.b", or "observation" for one alone."""
    from minari.dataset.minari_storage import is_image_space

    inner = {}
    if type(space).__name__ == "Dict":
        inner = dict(space.spaces)
    elif type(space).__name__ == "Tuple":
        inner = {f"_index_{i}": each for i, each in enumerate(space.spaces)}
    elif is_picture(space):
        name = ".".join(key.removeprefix("_index_") for key in leaf) or "observation"
        return {name: Camera(str(data), leaf, tuple(space.shape), jpeg and bool(is_image_space(space)), hdf5)}
    return {name: camera for key, each in inner.items()
            for name, camera in stored_cameras(each, data, jpeg=jpeg, hdf5=hdf5, leaf=(*leaf, key)).items()}


def stored_episode(data: str | Path, number: int) -> dict[str, Any]:
    """An episode through Minari's own reader, for what is not HDF5."""
    from minari.dataset.minari_storage import MinariStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next(iter(MinariStorage.read(Path(data)).get_episodes([number])))
