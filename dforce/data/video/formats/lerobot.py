"""Episodes of a LeRobot data set as clips: the frames of one camera, and the actions that led from each to the next."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dforce.data.episodes import Episodes
from dforce.data.robot_formats import lerobot_root, read_lerobot
from dforce.data.video.clip import BadClip, Clip, ClipSet


@dataclass(kw_only=True)
class LeRobotClip(Clip):
    """An episode, path the data set's folder. camera: its name. first: row of its first observation."""

    camera: str
    episode: int
    first: int

    def read(self, index: np.ndarray) -> np.ndarray:
        try:
            return _episodes(self.path).images[self.camera][self.first + index]
        except ValueError as error:
            raise BadClip(str(error)) from error

    def actions(self) -> np.ndarray:
        """[S, A] float32."""
        return _episodes(self.path).episode(self.episode)[1].astype(np.float32)


@lru_cache(maxsize=4)
def _episodes(path: str) -> Episodes:
    return read_lerobot(Path(path))


def lerobot_clips(path: Path) -> ClipSet | None:
    """The episodes of a data set by its first camera, or, for the path <data set>/videos/<camera's key>, by that one.

    None where there is no LeRobot data set. ValueError for another part of one, and for one without cameras.
    """
    inner = next((folder for folder in path.parents if folder.name == "videos"), None)
    root = inner.parent if inner is not None and (inner.parent / "meta" / "info.json").is_file() else path
    if lerobot_root(root) is None:
        return None
    _episodes.cache_clear()  # the files may be other ones by now
    episodes = _episodes(str(root))
    cameras = list(episodes.images)
    if not cameras:
        raise ValueError(f"{root} has no camera: its numbers are for `dforce imitate data=...`")
    chosen = [name for name in cameras if root != path and path.name in (name, f"observation.images.{name}",
                                                                         f"observation.{name}")]
    if root != path and not chosen:
        raise ValueError(f"{path} is of the LeRobot data set {root} and none of its cameras, {', '.join(cameras)}")
    name = (chosen or cameras)[0]
    notes = [f"{root.name} has several cameras, {', '.join(cameras)}; {name} is taken, for another give {root}/videos/"
             "observation.images.<camera>"] if len(cameras) > 1 and not chosen else []
    height, width = episodes.images[name].shape[1:3]
    known = episodes.about.get("last_observation") != "repeated"
    dt, count = episodes.about.get("dt"), len(episodes)
    clips: list[Clip] = [LeRobotClip(
        name=f"episode_{e}", path=str(root), frames=int(episodes.lengths[e]) + known, height=height, width=width,
        fps=1 / dt if dt else None, camera=name, episode=e, first=int(episodes.first_observation[e]))
        for e in range(count)]
    return ClipSet(clips, [None] * count, {}, [clip.name for clip in clips], notes, offset=1, title=root.name)
