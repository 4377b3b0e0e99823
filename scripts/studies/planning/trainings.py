"""What a network was trained for, and what guidance makes of it: several trainings planned with on the same starts.

python scripts/studies/planning/trainings.py NAME=CHECKPOINT[,CHECKPOINT ...] ... [--scales .1 .3] [--draws 1 4] [--out
FILE]

Every training, of one network or of several seeds, is planned with by plain guidance (1 future) and by Monte Carlo Tree
Guidance, at each scale, and driven by PD tracking. The starts are those that tuning sees, never those of a benchmark's
table, so that trainings may be chosen by them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import torch
from findings import tell, write
from parts import TUNE_SEED, starts_of

import dforce
from dforce.planning.control import run_episodes, tracking
from dforce.planning.planner import planner_around
from dforce.planning.scores import blocked_mask, score_report
from dforce.planning.tasks import trained_task
from dforce.train.precision import device_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainings", nargs="+", metavar="NAME=CHECKPOINT,...")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a token")
    parser.add_argument("--delay", type=int, default=1)
    parser.add_argument("--scales", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--draws", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[TUNE_SEED, TUNE_SEED + 1], help="of the starts")
    parser.add_argument("--episodes", type=int, default=100, help="starts of each seed, for each network")
    parser.add_argument("--device", help="of the network; without it the GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("docs/results/trainings.json"))
    asked, begin, rows = parser.parse_args(), time.monotonic(), []
    for training in asked.trainings:
        if "=" not in training:
            parser.error(f"{training!r}: give a name and its checkpoints, NAME=CHECKPOINT,CHECKPOINT")
    torch.set_num_threads(1)
    for training in asked.trainings:
        name, _, checkpoints = training.rpartition("=")
        bundles = [dforce.load(checkpoint, device=device_of(asked.device)) for checkpoint in checkpoints.split(",")]
        task = trained_task(bundles[0].layout)
        starts, goals = starts_of(task, asked.episodes, asked.seeds)
        masks = [blocked_mask(task.world, starts, goals)] * len(bundles)
        for draws, scale in itertools.product(asked.draws, asked.scales):
            planners = [planner_around(bundle, steps=asked.steps, delay=asked.delay, draws=draws, scale=scale)
                        for bundle in bundles]
            played = [run_episodes(task.world, planner, tracking(), starts, goals, steps=task.steps, seed=number)
                      for number, planner in enumerate(planners)]
            found = score_report(task.world, played, masks).rows(
                task=task.name, method=name, variant={**planners[0].variant, "networks": len(bundles)})
            rows += found
            tell(found)
            write(asked.out, rows, begin)  # after each: what is stopped keeps what it has


if __name__ == "__main__":
    main()
