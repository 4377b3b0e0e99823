"""Minari data sets with image observations as clips: an episode is a clip of T + 1 frames and T actions."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.arrays import checked_array, open_hdf5, part, read_part
from dforce.data.columns import flatten_rows, opened_storage
from dforce.data.minari import MAIN, read_metadata
from dforce.data.pixels import read_picture
from dforce.data.store import recovered, verify_checksums
from dforce.data.video.clip import BadClip, Clip, ClipSet

LOSSY = ("{name} keeps its frames as JPEG (jpeg_encoding=True, Minari's default), whose artefacts a model learns; "
         "record with jpeg_encoding=False to avoid them")


@dataclass(kw_only=True)
class MinariClip(Clip):
    """An episode of a Minari data set, path its data folder. leaf: keys of the images in the observations.

    channels_first: stored as [C, H, W]. jpeg: stored as JPEG. hdf5: single frames can be read, of others all of them.
    """

    episode: int = 0
    leaf: tuple[str, ...] = ()
    channels_first: bool = False
    jpeg: bool = False
    hdf5: bool = True

    def read(self, index: np.ndarray) -> np.ndarray:
        try:
            frames = self._hdf5(index) if self.hdf5 else self._other(index)
        except (OSError, KeyError, ValueError, RuntimeError, IndexError) as error:
            raise BadClip(f"it cannot be read ({error})") from error
        frames = np.ascontiguousarray(np.moveaxis(frames, 1, -1)) if self.channels_first else frames
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, self.channels):
            raise BadClip(f"its observations are {frames.dtype} {frames.shape[1:]}, its space says uint8 "
                          f"{(self.height, self.width, self.channels)}")
        return frames

    def _hdf5(self, index: np.ndarray) -> np.ndarray:
        with open_hdf5(Path(self.path) / MAIN) as file:
            stored = checked_array(part(file, "/".join([f"episode_{self.episode}", "observations", *self.leaf])))
            unique, inverse = np.unique(index, return_inverse=True)  # h5py wants each row once
            rows = stored[unique]
        if self.jpeg and rows.ndim < 4:  # bytes of a file in each row; images are stored whole where it is 4
            rows = np.stack([read_picture(io.BytesIO(np.asarray(row, np.uint8).tobytes())) for row in rows])
        return rows[inverse]

    def _other(self, index: np.ndarray) -> np.ndarray:
        value = _episode(self.path, self.episode)["observations"]
        for key in self.leaf:
            value = value[int(key.removeprefix("_index_"))] if isinstance(value, tuple) else value[key]
        return np.asarray(value)[index]

    def actions(self) -> np.ndarray | None:
        """[T, A] float32, or [T] integers where the actions are discrete."""
        try:
            raw = self._raw_actions()
            space = opened_storage(Path(self.path)).action_space
            if type(space).__name__ == "Discrete":
                return np.asarray(raw).astype(np.int64).reshape(-1) - int(space.start)
            return flatten_rows(space, raw).astype(np.float32)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise BadClip(f"its actions cannot be read ({error})") from error

    def _raw_actions(self) -> Any:
        if not self.hdf5:
            return _episode(self.path, self.episode)["actions"]
        with open_hdf5(Path(self.path) / MAIN) as file:
            return read_part(file, f"episode_{self.episode}/actions")


def minari_clips(folder: Path) -> ClipSet:
    """The episodes of a Minari data set as clips; of several image observations the first is taken, with a note."""
    verify_checksums(recovered(folder))
    data, metadata = folder / "data", read_metadata(folder)
    name = metadata.get("dataset_id", folder.name)
    storage = opened_storage(data)
    leaves = _images(storage.observation_space)
    if not leaves:
        raise ValueError(f"the observations of {name} hold no images (uint8, height x width x 1 or 3): vectors are for "
                         "`dforce train data=...`")
    leaf, shape, image = leaves[0]
    first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    height, width, channels = (shape[1], shape[2], shape[0]) if first else shape
    jpeg = image and storage.jpeg_encoding
    notes = [LOSSY.format(name=name)] if jpeg else []
    if len(leaves) > 1:
        several = ", ".join("/".join(keys) for keys, *_ in leaves)
        notes.append(f"{name} has several images, {several}; the first is taken")
    hdf5 = metadata.get("data_format", "hdf5") == "hdf5"
    episodes = ClipSet([], [], {}, [], notes, offset=1, title=name)
    for episode, steps in enumerate(_lengths(data, metadata, hdf5)):
        episodes.names.append(f"episode_{episode}")
        episodes.split.append(None)
        episodes.clips.append(MinariClip(
            name=f"episode_{episode}", path=str(data), frames=steps + 1, height=height, width=width, channels=channels,
            episode=episode, leaf=leaf, channels_first=first, jpeg=jpeg, hdf5=hdf5))
    return episodes


def _images(space: Any, leaf: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], tuple[int, int, int], bool]]:
    """The images in a space: keys as they are stored, shape, and whether Minari takes (and stores) them for images."""
    from minari.dataset.minari_storage import is_image_space

    if type(space).__name__ == "Dict":
        return [image for key, inner in space.spaces.items() for image in _images(inner, (*leaf, key))]
    if type(space).__name__ == "Tuple":
        return [image for i, inner in enumerate(space.spaces) for image in _images(inner, (*leaf, f"_index_{i}"))]
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    image = getattr(space, "dtype", None) == np.uint8 and len(shape) == 3 and (shape[2] in (1, 3) or shape[0] in (1, 3))
    return [(leaf, (shape[0], shape[1], shape[2]), is_image_space(space))] if image else []


def _episode(data: str, number: int) -> dict[str, Any]:
    from minari.dataset.minari_storage import MinariStorage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return next(iter(MinariStorage.read(Path(data)).get_episodes([number])))


def _lengths(data: Path, metadata: dict[str, Any], hdf5: bool) -> list[int]:
    """Steps of every episode."""
    count = int(metadata["total_episodes"])
    if not hdf5:
        from minari.dataset.minari_storage import MinariStorage

        return [int(m["total_steps"]) for m in MinariStorage.read(data).get_episode_metadata(range(count))]
    with open_hdf5(data / MAIN) as file:
        return [int(part(file, f"episode_{i}").attrs["total_steps"]) for i in range(count)]
