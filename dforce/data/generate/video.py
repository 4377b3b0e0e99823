"""Generated video data sets in TECO's layout: {train,test}/<shard>/<clip>.npz: video, actions [T], exact pose [T, P].

Frames are not compressed, so that any can be read alone. A shard appears complete or not at all, with checksums, and is
not made again, so a run can go on, and several processes may share the work.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dforce.core.files import replacing
from dforce.data.store import write_checksums

ABOUT = "about.json"
Shard = Iterable[dict[str, np.ndarray]]  # clips, each as arrays by name
Shards = dict[str, Callable[[], Shard]]  # "train/maze_0003" -> a function that yields its clips


def make_shards(root: str | os.PathLike, about: dict[str, Any], shards: Shards) -> Iterator[int]:
    """Makes the shards that do not exist yet; yields the number of frames of each clip made.

    about: settings of the data set, kept in about.json; ValueError where `root` holds a data set with others.
    """
    root = Path(root).expanduser()
    _claim(root, about)
    # Two passes: the first leaves shards to the processes that are making them, the second makes what is then missing.
    for name, again in [(name, again) for again in (False, True) for name in shards]:
        place = root / name
        if place.exists() or (not again and any(place.parent.glob(f".making-{place.name}-*"))):
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".making-{place.name}-", dir=place.parent))
        try:
            for number, clip in enumerate(shards[name]()):
                np.savez(stage / f"clip_{number:04}.npz", **clip)  # type: ignore[arg-type]
                yield len(clip["video"])
            write_checksums(stage)
            stage.chmod(0o755)
            try:
                os.rename(stage, place)
            except OSError:
                if not place.exists():  # another process was first, with the same clips
                    raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)


@dataclass(frozen=True)
class ClipGeneration:
    """Settings of generated clips, as `doom` and `bouncing_balls` take them; None is the default of the source."""

    source: Literal["doom", "balls"]
    frames: int
    size: int | None
    seed: int
    mazes: int
    test_mazes: int
    clips: int | None
    test_clips: int
    rooms: int
    zones: int
    textures: int
    floors: int
    balls: int

    @property
    def total(self) -> int:
        """Frames of all clips."""
        count = (self.clips or 1000) + self.test_clips if self.source == "balls" else self.mazes * (self.clips or 16)
        return count * self.frames

    def make(self, root: str | os.PathLike) -> Iterator[int]:
        """Makes the clips that do not exist yet; yields the number of frames of each."""
        if self.source == "balls":
            return bouncing_balls(root, clips=self.clips or 1000, test_clips=self.test_clips, frames=self.frames,
                                  size=self.size or 16, balls=self.balls, seed=self.seed)
        return doom(root, mazes=self.mazes, test_mazes=self.test_mazes, clips=self.clips or 16, frames=self.frames,
                    size=self.size or 64, seed=self.seed, rooms=self.rooms, zones=self.zones, textures=self.textures,
                    floors=self.floors)


def doom(root: str | os.PathLike, *, mazes: int = 20, test_mazes: int = 2, clips: int = 16, frames: int = 300,
         size: int = 64, seed: int = 0, rooms: int = 4, zones: int = 4, textures: int = 6,
         floors: int = 1) -> Iterator[int]:
    """First-person walks through random mazes (`dforce.envs.doom`): clips per maze, pose (x, y in cells, degrees).

    The last `test_mazes` of the mazes are the test split. rooms, zones, textures, floors: see `random_maze`.
    """
    from dforce.envs.doom.map import random_maze
    from dforce.envs.doom.walker import ACTIONS, TICS, TURN, DoomWalker, walk

    if min(mazes, clips, frames, size) < 1 or not 0 <= test_mazes < mazes:
        raise ValueError(f"mazes, clips, frames and size are at least 1 and test_mazes less than mazes, got {mazes}, "
                         f"{clips}, {frames}, {size} and {test_mazes}")
    looks = {"rooms": rooms, "zones": zones, "textures": textures, "floors": floors}
    about = {"source": "doom", "mazes": mazes, "test_mazes": test_mazes, "clips": clips, "frames": frames, "size": size,
             "seed": seed, **looks, "actions": list(ACTIONS), "action_offset": 0, "turn": TURN, "tics": TICS,
             "pose": ["x", "y", "degrees"]}

    def shard(number: int) -> Shard:
        rng = np.random.default_rng([seed, number])
        with DoomWalker(random_maze(rng, **looks), size=size, seed=seed) as walker:
            for one in walk(walker, clips=clips, frames=frames, rng=rng):
                yield {"video": one.video, "actions": one.actions, "pose": one.pose}

    split = ["train"] * (mazes - test_mazes) + ["test"] * test_mazes
    yield from make_shards(root, about, {f"{where}/maze_{i:04}": partial(shard, i) for i, where in enumerate(split)})


def bouncing_balls(root: str | os.PathLike, *, clips: int = 1000, test_clips: int = 100, frames: int = 300,
                   size: int = 16, balls: int = 1, seed: int = 0, shard_clips: int = 100) -> Iterator[int]:
    """Bouncing balls (`data.generate.balls`) without actions; pose: (x, y, vx, vy) of each, in sides (and a frame)."""
    import torch

    from dforce.data.generate.balls import balls as simulated
    from dforce.data.pixels import to_uint8

    if min(clips, test_clips, frames, size, shard_clips) < 1:
        raise ValueError(f"clips, test_clips, frames, size and shard_clips are at least 1, got {clips}, {test_clips}, "
                         f"{frames}, {size}, {shard_clips}")
    about = {"source": "balls", "clips": clips, "test_clips": test_clips, "frames": frames, "size": size,
             "balls": balls, "seed": seed, "shard_clips": shard_clips, "pose": ["x", "y", "vx", "vy"]}

    def shard(stream: int, first: int, count: int) -> Shard:
        key = np.random.SeedSequence([seed, stream, first]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        made = simulated(count, frames, size, balls, torch.Generator().manual_seed(int(key)))
        video = to_uint8(made.frames)
        pose = torch.cat([made.positions, made.velocities], -1).flatten(2).float().numpy()
        for film, state in zip(video, pose, strict=True):
            yield {"video": film, "pose": state}

    shards: Shards = {}
    for stream, (split, total) in enumerate((("train", clips), ("test", test_clips))):
        for first in range(0, total, shard_clips):
            count = min(shard_clips, total - first)
            shards[f"{split}/shard_{first // shard_clips:04}"] = partial(shard, stream, first, count)
    yield from make_shards(root, about, shards)


def _claim(root: Path, about: dict[str, Any]) -> None:
    """Writes about.json, or checks that the existing one holds the same settings."""
    file = root / ABOUT
    root.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        try:
            there = json.loads(file.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} is damaged ({error}): choose another folder, or remove this one") from error
        if there != json.loads(json.dumps(about)):
            other = sorted(k for k in {*there, *about} if there.get(k) != json.loads(json.dumps(about.get(k))))
            raise ValueError(f"{root} holds clips that were made otherwise ({', '.join(other)} differ): choose another "
                             "folder, or give the same settings to go on with them")
        return
    if (root / "train").exists() or (root / "test").exists():
        raise ValueError(f"{root} holds clips that were not made here (it has no {ABOUT}): choose another folder")
    with replacing(file) as partial:
        partial.write_text(json.dumps(about, indent=1))
