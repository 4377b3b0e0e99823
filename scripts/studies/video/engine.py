"""What the true world makes of the actions that a rollout was fed: python scripts/studies/video/engine.py ROLLOUT

A rollout is told actions by somebody who does not see its frames. Where it is not in the maze that they were chosen in,
they lead into walls, and at a wall an action can hardly be seen. So the engine itself, in mazes that nobody has seen
(one a rollout, textures and sizes those of the data), is fed the same actions from its start, and the same probe says
how many of them it sees: what a perfect model of another maze would reach. Where the actions were a walker's, who saw
the rollout (actions=walker), the same walker sees the engine's frames and chooses anew. ROLLOUT: a run folder of
`dforce rollout` on data of `dforce data video source=doom`. Frames, actions and rows go into a run folder of their own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from dforce.data.pixels import from_uint8
from dforce.envs.doom.map import random_maze
from dforce.envs.doom.walker import DoomWalker
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder
from dforce.train.precision import device_of
from dforce.video.evaluation import action_rows
from dforce.video.metrics.measure import RowMaker
from dforce.video.model import load_video
from dforce.video.reference_clips import RealVideo
from dforce.video.stream import Actions
from dforce.video.walker import FILE, Walker, WalkerPolicy, load_walker

OTHER = 1_000_000  # added to the numbers of the data's mazes: none of these is one of them
LOOKS = ("rooms", "zones", "textures", "floors")


def played(actions: Actions, steps: int, about: dict, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames [steps, H, W, 3] of the engine in a maze of its own, and the numbers [steps] of the actions taken."""
    rng, frames, taken = np.random.default_rng([about["seed"], OTHER + number]), [], []
    with DoomWalker(random_maze(rng, **{key: about[key] for key in LOOKS}), size=about["size"],
                    seed=about["seed"]) as walker:
        frame, _ = walker.reset()
        for t in range(1, steps + 1):
            if isinstance(actions, Walker):
                actions.see(from_uint8(frame)[None, None])
            taken.append(int(actions(t, 1)[0, 0].argmax()))
            frame, _ = walker.step(taken[-1])
            frames.append(frame)
    return np.stack(frames), np.array(taken)


def blind(table: np.ndarray) -> Actions:
    """Who tells the actions [T, A] of a table, whatever comes of them."""
    return lambda frame, count: torch.from_numpy(table[None, frame - 1:frame - 1 + count])


def seeing(policy: WalkerPolicy, seed: int, number: int) -> Walker:
    """The walker of rollout `number`, who has seen nothing yet."""
    return Walker(policy, torch.zeros(1, 0, *policy.shape), torch.zeros(1, 0, policy.actions), seed=seed,
                  rollouts=torch.tensor([number]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollout", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--device", help="where the probe is trained; none: the GPU if there is one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = OmegaConf.load(args.rollout / "config.yaml")
    model = load_video(cfg.checkpoint, device=device_of(args.device))
    data = cfg.data or model.data
    about = json.loads((Path(data) / "about.json").read_text(encoding="utf-8"))
    fed = np.fromfile(args.rollout / "actions.f32", np.float32).reshape(-1, cfg.samples, model.actions)[:cfg.frames]
    walks, policy = cfg.actions == "walker", args.rollout / FILE
    tellers = [seeing(load_walker(policy), cfg.seed, number) if walks else blind(fed[:, number])
               for number in range(cfg.samples)]
    learnt, real = (RealVideo(model, data, split=split, seed=cfg.seed) for split in ("train", "val"))
    with RunFolder("video/engine", {"rollout": str(args.rollout)}, out=args.out) as folder:
        frames, taken = zip(*(played(who, len(fed), about, number) for number, who in enumerate(tellers)), strict=True)
        fed = np.eye(model.actions, dtype=np.float32)[np.stack(taken, 1)] if walks else fed
        made = np.stack(frames, 1)
        np.save(folder.path / "frames.npy", made)
        np.save(folder.path / "actions.npy", fed)
        rows = action_rows(learnt, real, made, fed, RowMaker(real.data, "engine, another maze", {"actions": "walker"}
                                                            if walks else {}), steps=cfg.feature_steps, seed=cfg.seed)
        folder.results(rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
