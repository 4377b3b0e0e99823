"""Does the view come back after a way out and back? python scripts/studies/video/turns.py doom16 [--mazes 24]

In mazes that nobody has learnt from, one a rollout, a walker of the engine looks around, stands still, and then turns
by 360 degrees, to the left or to the right, or goes forward, turns round, comes back and turns round. The world model
begins with the same frames and is told the same actions. Measured is the gain of the return (`return_gain`): the PSNR
of the frame at which the way ends with the one at which it began, less the mean of the two frames beside it, which
look a little to the left and to the right. The engine is asked the same. Rows go into a run folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.data.pixels import from_uint8
from dforce.envs.doom.map import random_maze
from dforce.envs.doom.walker import FORWARD, LEFT, RIGHT, TURN, DoomWalker, explore, room_ahead
from dforce.report.rows import Row
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder
from dforce.runs.progress import progress
from dforce.video.metrics.measure import RowMaker
from dforce.video.metrics.memory import return_gain
from dforce.video.model import VideoModel, load_video
from dforce.video.stream import Recipe, continued

OTHER = 2_000_000  # added to the numbers of mazes: none of these is one of a data set
WALK = 16          # frames of the look around, before the walker stands still
STILL = [LEFT] * 16 + [RIGHT] * 16  # long enough for the walker to come to rest
ROUND = round(360 / TURN)
STEPS, FREE = 6, 1.8  # forward, and how many cells are free there
NEAR = 0.05           # cells: a way whose end is further from its beginning met a wall, and another one is tried
TRIPS = {"turn left": [LEFT] * ROUND, "turn right": [RIGHT] * ROUND,
         "out and back": [FORWARD] * STEPS + [LEFT] * (ROUND // 2) + [FORWARD] * STEPS + [LEFT] * (ROUND // 2)}


class Walks(NamedTuple):
    """Frames [B, T, C, H, W] and actions [B, T] of the engine, of which `context` are before the way, and what is left
    of the way at its end: the distance in cells and the angle in degrees, [B]."""

    frames: Tensor
    actions: Tensor
    context: int
    apart: np.ndarray


def walked(mazes: int, size: int, looks: dict[str, int], seed: int) -> dict[str, Walks]:
    """The engine's walks of every trip, one in each of so many mazes. A way goes on for one frame after its end."""
    parts: dict[str, list] = {trip: [] for trip in TRIPS}
    for number in progress(range(mazes), "engine"):
        maze = random_maze(np.random.default_rng([seed, OTHER + number]), **looks)
        with DoomWalker(maze, size=size, seed=seed) as walker:
            for trip, way in TRIPS.items():
                parts[trip].append(one_walk(walker, way, np.random.default_rng([seed, number])))
    return {trip: Walks(from_uint8(np.stack(frames)), torch.tensor(actions), WALK + len(STILL), np.array(apart))
            for trip, each in parts.items() for frames, actions, apart in [zip(*each, strict=True)]}


def one_walk(walker: DoomWalker, trip: list[int], rng: np.random.Generator) -> tuple[
        np.ndarray, list[int], list[float]]:
    """Frames, actions and what is left of the way of one walk, which begins once there is room ahead."""
    seen, told = looked_around(walker, rng)
    poses = []
    for action in [*STILL, *trip, trip[-1]]:
        frame, pose = walker.step(action)
        seen.append(frame)
        told.append(action)
        poses.append(pose)
    apart = poses[-2] - poses[len(STILL) - 1]
    if np.hypot(*apart[:2]) > NEAR:
        return one_walk(walker, trip, rng)
    return np.stack(seen), told, [float(np.hypot(*apart[:2])), float(apart[2] + 180) % 360 - 180]


def looked_around(walker: DoomWalker, rng: np.random.Generator) -> tuple[list[np.ndarray], list[int]]:
    """WALK frames and actions of a walk from the start of the maze, which ends where there is room ahead."""
    frame, pose = walker.reset()
    policy = explore(walker.maze, rng)
    action, seen, told = next(policy), [frame], [LEFT]
    while len(seen) < WALK or room_ahead(walker.maze, pose, 0.0) < FREE:
        frame, pose = walker.step(action)
        seen.append(frame)
        told.append(action)
        action = policy.send(pose)
    return seen[-WALK:], told[-WALK:]


def trip_rows(model: VideoModel, recipe: Recipe, walks: Walks, trip: str, maker: RowMaker, seed: int) -> list[Row]:
    """Rows of the model and of the engine."""
    told = torch.nn.functional.one_hot(walks.actions, model.actions).float()
    told[:, 0] = 0                                                             # nothing led to the first frame
    real, before = walks.frames[:, walks.context:], walks.frames[:, walks.context - 1]
    made = continued(model, recipe, walks.frames[:, :walks.context], real.shape[1],
                     actions=lambda frame, count: told[:, frame:frame + count]).cpu()
    rows: list[Row] = []
    for who, frames in ((maker, made), (maker._replace(method="engine"), real)):
        part = who.having(way=trip, frames=real.shape[1] - 1)
        back, beside, gain = return_gain(frames, before, real.shape[1] - 2)
        rows += [part.mean(name, values, seed=seed, unit="dB", higher=higher) for name, values, higher in (
            ("gain of the return", gain, True), ("psnr of the return", back, True), ("psnr beside it", beside, None))]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--mazes", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    for look, usual in (("rooms", 3), ("zones", 4), ("textures", 4), ("floors", 1)):
        parser.add_argument(f"--{look}", type=int, default=usual, help="of the mazes; as the data of doom16 by default")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_video(args.checkpoint)
    recipe = Recipe(**model.config.get("recipe", {})).checked(model.stack)
    looks = {key: getattr(args, key) for key in ("rooms", "zones", "textures", "floors")}
    with RunFolder("video/turns", vars(args) | {"out": str(args.out)}, out=args.out) as folder:
        rows: list[Row] = []
        maker = RowMaker("doom mazes, out and back", args.checkpoint, {})
        for trip, walks in walked(args.mazes, model.shape[1], looks, args.seed).items():
            far, turned = np.abs(walks.apart).max(0)
            print(f"{trip}: the engine ends {far:.3f} cells and {turned:.3f} degrees at most from where it began")
            rows += trip_rows(model, recipe, walks, trip, maker, args.seed)
        folder.results(rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
