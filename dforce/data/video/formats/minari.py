"""Minari data sets with image observations as clips: an episode is a clip of T + 1 frames and T actions."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dforce.data.arrays import open_hdf5, part, read_part
from dforce.data.columns import flatten_rows, opened_storage
from dforce.data.minari import read_metadata
from dforce.data.minari_pictures import MAIN, Camera, stored_cameras, stored_episode
from dforce.data.store import recovered, verify_checksums
from dforce.data.video.clip import BadClip, Clip, ClipSet

LOSSY = ("{name} keeps its frames as JPEG (jpeg_encoding=True, Minari's default), whose artefacts a model learns; "
         "record with jpeg_encoding=False to avoid them")


@dataclass(kw_only=True)
class MinariClip(Clip):
    """An episode of a Minari data set, path its data folder. leaf, stored, jpeg, hdf5: as of `Camera`."""

    episode: int = 0
    leaf: tuple[str, ...] = ()
    stored: tuple[int, ...] = ()
    jpeg: bool = False
    hdf5: bool = True

    def read(self, index: np.ndarray) -> np.ndarray:
        try:
            return Camera(self.path, tuple(self.leaf), tuple(self.stored), self.jpeg, self.hdf5).read(
                self.episode, index)
        except ValueError as error:
            raise BadClip(str(error)) from error

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
            return stored_episode(self.path, self.episode)["actions"]
        with open_hdf5(Path(self.path) / MAIN) as file:
            return read_part(file, f"episode_{self.episode}/actions")


def minari_clips(folder: Path) -> ClipSet:
    """The episodes of a Minari data set as clips; of several image observations the first is taken, with a note."""
    verify_checksums(recovered(folder))
    data, metadata = folder / "data", read_metadata(folder)
    name = metadata.get("dataset_id", folder.name)
    storage = opened_storage(data)
    hdf5 = metadata.get("data_format", "hdf5") == "hdf5"
    cameras = stored_cameras(storage.observation_space, data, jpeg=storage.jpeg_encoding, hdf5=hdf5)
    if not cameras:
        raise ValueError(f"the observations of {name} hold no images (uint8, height x width x 1 or 3): vectors are for "
                         "`dforce train data=...`")
    camera = next(iter(cameras.values()))
    height, width, channels = camera.size
    notes = [LOSSY.format(name=name)] if camera.jpeg else []
    if len(cameras) > 1:
        several = ", ".join("/".join(each.leaf) for each in cameras.values())
        notes.append(f"{name} has several images, {several}; the first is taken")
    episodes = ClipSet([], [], {}, [], notes, offset=1, title=name)
    for episode, steps in enumerate(_lengths(data, metadata, hdf5)):
        episodes.names.append(f"episode_{episode}")
        episodes.split.append(None)
        episodes.clips.append(MinariClip(
            name=f"episode_{episode}", path=str(data), frames=steps + 1, height=height, width=width, channels=channels,
            episode=episode, leaf=camera.leaf, stored=camera.shape, jpeg=camera.jpeg, hdf5=hdf5))
    return episodes


def _lengths(data: Path, metadata: dict[str, Any], hdf5: bool) -> list[int]:
    """Steps of every episode."""
    count = int(metadata["total_episodes"])
    if not hdf5:
        from minari.dataset.minari_storage import MinariStorage

        return [int(m["total_steps"]) for m in MinariStorage.read(data).get_episode_metadata(range(count))]
    with open_hdf5(data / MAIN) as file:
        return [int(part(file, f"episode_{i}").attrs["total_steps"]) for i in range(count)]
