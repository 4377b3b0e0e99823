"""Does a plan begin where the robot is? How far the first planned state lies from the start, by network and guidance.

python scripts/studies/planning/beginnings.py NAME=CHECKPOINT ... [--scales 0 .1] [--out docs/results/beginnings.json]

The start is a condition of the network and nothing else holds a plan to it, so a network that has not learnt to read it
plans from anywhere, at the best guidance from the goal. The starts are those that tuning sees.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from findings import tell, write
from parts import TUNE_SEED, starts_of

import dforce
from dforce.planning.planner import DiffusionPlanner, planner_around
from dforce.planning.tasks import Task, trained_task
from dforce.report.rows import Row, make_row
from dforce.report.statistics import bootstrap_interval


def beginning(task: Task, name: str, planner: DiffusionPlanner, episodes: int) -> Row:
    """The mean distance, with its bootstrap interval, over so many starts."""
    starts, goals = starts_of(task, episodes, [TUNE_SEED])
    plan = planner(starts, goals, task.steps, np.random.default_rng(0))
    away = np.linalg.norm(plan.states[:, 0, :2] - starts[:, :2], axis=1)
    return make_row(task.name, name, "start_distance", bootstrap_interval(away, rng=np.random.default_rng(0)),
                    variant={"scale": planner.scale}, unit="cells from the start to the first planned state",
                    higher=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a token")
    parser.add_argument("--delay", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("docs/results/beginnings.json"))
    asked, begin, rows = parser.parse_args(), time.monotonic(), []
    if wrong := [word for word in asked.networks if "=" not in word]:
        parser.error(f"{wrong[0]!r}: give a name and its checkpoint, NAME=CHECKPOINT")
    torch.set_num_threads(1)
    for word, scale in itertools.product(asked.networks, asked.scales):
        name, _, checkpoint = word.rpartition("=")
        bundle = dforce.load(checkpoint, device="cpu")
        planner = planner_around(bundle, steps=asked.steps, delay=asked.delay, scale=scale)
        rows.append(beginning(trained_task(bundle.layout), name, planner, asked.episodes))
        tell(rows[-1:])
    write(asked.out, rows, begin)


if __name__ == "__main__":
    main()
