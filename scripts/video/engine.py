"""What the true world makes of the actions that a rollout was fed: python scripts/video/engine.py ROLLOUT

A rollout is told actions by somebody who does not see its frames. Where it is not in the maze that they were chosen in,
they lead into walls, and at a wall an action can hardly be seen. So the engine itself, in mazes that nobody has seen
(one a rollout, textures and sizes those of the data), is fed the same actions from its start, and the same probe says
how many of them it sees: what a perfect model of another maze would reach. ROLLOUT: a run folder of `dforce rollout`
on data of `dforce data video source=doom`. Frames and rows go into a run folder of their own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from dforce.envs.doom import DoomWalker
from dforce.envs.doom_map import random_maze
from dforce.report.table import markdown_table
from dforce.run import RunFolder
from dforce.video.model import load_video
from dforce.video.page import of_actions
from dforce.video.real import RealVideo

OTHER = 1_000_000  # added to the numbers of the data's mazes: none of these is one of them
LOOKS = ("rooms", "zones", "textures", "floors")


def played(actions: np.ndarray, about: dict, number: int) -> np.ndarray:
    """Frames [T, H, W, 3] of the engine that is fed actions [T] in a maze of its own."""
    rng = np.random.default_rng([about["seed"], OTHER + number])
    with DoomWalker(random_maze(rng, **{key: about[key] for key in LOOKS}), size=about["size"],
                    seed=about["seed"]) as walker:
        walker.reset()
        return np.stack([walker.step(int(action))[0] for action in actions])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rollout", type=Path)
    parser.add_argument("--out", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cfg = OmegaConf.load(asked.rollout / "config.yaml")
    model = load_video(cfg.checkpoint)
    data = cfg.data or model.data
    about = json.loads((Path(data) / "about.json").read_text(encoding="utf-8"))
    fed = np.fromfile(asked.rollout / "actions.f32", np.float32).reshape(-1, cfg.samples, model.actions)[:cfg.frames]
    learnt, real = (RealVideo(model, data, split=split, seed=cfg.seed) for split in ("train", "val"))
    with RunFolder("video/engine", {"rollout": str(asked.rollout)}, out=asked.out) as folder:
        made = np.stack([played(row.argmax(-1), about, number) for number, row in enumerate(fed.swapaxes(0, 1))], 1)
        np.save(folder.path / "frames.npy", made)
        rows = of_actions(learnt, real, made, fed, steps=cfg.feature_steps, seed=cfg.seed,
                          method="engine, another maze", variant={})
        folder.results(rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
