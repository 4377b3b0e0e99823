"""Minari data sets with image observations as clips: an episode is a clip of T + 1 frames and T actions."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.minari import read_metadata
from dforce.data.spaces import flatten_rows, stored_spaces
from dforce.data.store import recovered, verify_checksums
from dforce.data.video.clip import BadClip, Clip, ClipSet

LOSSY = ("{name} keeps its frames as JPEG (jpeg_encoding=True, Minari's default), whose artefacts a model learns; "
         "record with jpeg_encoding=False to avoid them")


@dataclass(kw_only=True)
class MinariClip(Clip):
    """An episode of a Minari data set.

    path: the data folder. episode: its number. leaf: keys of the images in the observations. channels_first: images
    are stored as [C, H, W]. jpeg: they are stored as JPEG. hdf5: the data format, of which single frames can be read;
    of other formats the whole episode is read.
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
        return np.ascontiguousarray(np.moveaxis(frames, 1, -1)) if self.channels_first else frames

    def _hdf5(self, index: np.ndarray) -> np.ndarray:
        import h5py
        from PIL import Image

        with h5py.File(Path(self.path) / "main_data.hdf5", "r") as file:
            stored: Any = file[f"episode_{self.episode}/observations"]
            for key in self.leaf:
                stored = stored[key]
            unique, inverse = np.unique(index, return_inverse=True)  # h5py wants each row once
            rows = stored[unique]
        if self.jpeg:
            rows = np.stack([np.asarray(Image.open(io.BytesIO(np.asarray(row, np.uint8).tobytes()))) for row in rows])
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
            space = stored_spaces(Path(self.path))[1]
            if type(space).__name__ == "Discrete":
                return np.asarray(raw).astype(np.int64).reshape(-1) - int(space.start)
            return flatten_rows(space, raw).astype(np.float32)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            raise BadClip(f"its actions cannot be read ({error})") from error

    def _raw_actions(self) -> Any:
        if not self.hdf5:
            return _episode(self.path, self.episode)["actions"]
        import h5py

        def loaded(node: Any) -> Any:
            return {key: loaded(inner) for key, inner in node.items()} if isinstance(node, h5py.Group) else node[()]

        with h5py.File(Path(self.path) / "main_data.hdf5", "r") as file:
            return loaded(file[f"episode_{self.episode}/actions"])


def minari_clips(folder: Path) -> ClipSet:
    """The episodes of a Minari data set as clips. ValueError where its observations hold no images.

    Of several image observations the first is taken, and a note says so.
    """
    verify_checksums(recovered(folder))
    data, metadata = folder / "data", read_metadata(folder)
    name = metadata.get("dataset_id", folder.name)
    leaves = _images(stored_spaces(data)[0])
    if not leaves:
        raise ValueError(f"the observations of {name} hold no images (uint8, height x width x 1 or 3): vectors are for "
                         "`dforce train data=...`")
    leaf, shape = leaves[0]
    first = shape[0] in (1, 3) and shape[2] not in (1, 3)
    height, width, channels = (shape[1], shape[2], shape[0]) if first else shape
    jpeg = bool(metadata.get("jpeg_encoding", False))
    notes = [LOSSY.format(name=name)] if jpeg else []
    if len(leaves) > 1:
        several = ", ".join("/".join(keys) for keys, _ in leaves)
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


def _images(space: Any, leaf: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], tuple[int, int, int]]]:
    """The images in a space: keys as they are stored, and shape."""
    if type(space).__name__ == "Dict":
        return [image for key, inner in space.spaces.items() for image in _images(inner, (*leaf, key))]
    if type(space).__name__ == "Tuple":
        return [image for i, inner in enumerate(space.spaces) for image in _images(inner, (*leaf, f"_index_{i}"))]
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    image = getattr(space, "dtype", None) == np.uint8 and len(shape) == 3 and (shape[2] in (1, 3) or shape[0] in (1, 3))
    return [(leaf, (shape[0], shape[1], shape[2]))] if image else []


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
    import h5py

    try:
        with h5py.File(data / "main_data.hdf5", "r") as file:
            return [int(file[f"episode_{i}"].attrs["total_steps"]) for i in range(count)]
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{data / 'main_data.hdf5'} is damaged or incomplete ({error})") from error
