"""From full sequence to autoregressive: one checkpoint planned with at several delays, its steps staying the same.

python scripts/studies/planning/delay.py [CHECKPOINT ...] [--steps 20] [--delays 0 1 5 10 20] [--out
docs/results/delay.json]

A token runs `delay` rows behind the one before it: 0 is full-sequence diffusion, delay = steps next-token prediction.
Every delay is driven at every one of --scales, 0 being no guidance, so nothing is chosen. Rows: scores; differences of
score from the first delay on the same starts; and far_spread, how far apart several plans of one start end. Unguided,
the largest delay gives what a causal network has learnt: less spread than there is variety that a matrix lost.
Several checkpoints: such as a GRU and a transformer without its mask.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from findings import tell, write
from panels import line_panels, panels_of
from parts import far_ends, spread_row, starts_of

import dforce
from dforce.planning.control import tracking
from dforce.planning.evaluation import compare_methods, difference, planned
from dforce.planning.planner import planner_around
from dforce.planning.scores import ScoreReport
from dforce.planning.tasks import trained_task
from dforce.report.rows import Row
from dforce.train.precision import device_of

FAR, PLANS = 10, 6  # starts whose plans are spread, and how many of each
PANELS = {          # of the picture: title -> metric, what its rows have in common
    "score, all starts": ("score", {"starts": "all"}), "score, blocked starts": ("score", {"starts": "blocked"}),
    "plans through walls": ("in_wall", {"starts": "all"}),
    "reach, all starts": ("success", {"starts": "all"}), "reach, blocked starts": ("success", {"starts": "blocked"}),
    "spread of far tokens (m)": ("far_spread", {})}


def rows_of(checkpoint: str, asked: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of one delay and scale after the other."""
    bundle = dforce.load(checkpoint, device=device_of(asked.device))
    task = trained_task(bundle.layout)
    starts, goals = starts_of(task, asked.episodes, asked.seeds)
    net = f"{type(bundle.denoiser.net).__name__}, {'causal' if bundle.denoiser.causal else 'non-causal'}"
    first: dict[float, ScoreReport] = {}
    for scale, delay in itertools.product(asked.scales, asked.delays):
        name = f"{net}, scale {scale:g}"
        planner = planner_around(bundle, steps=asked.steps, delay=delay, draws=asked.draws, scale=scale)
        about = {"checkpoint": Path(checkpoint).name, "delay / steps": delay / asked.steps}
        method = planned(name, task.world, planner, tracking(), variant=about)
        played = compare_methods(task.world, [method], starts, goals, task=task.name)
        rows, own = played.rows, played.reports[0]
        if scale in first:
            rows += difference(task.name, f"{name}: delay {delay} - delay {asked.delays[0]}", own, first[scale])
        first.setdefault(scale, own)
        ends = far_ends(planner, starts[:FAR], goals[:FAR], task.steps, plans=PLANS)
        yield [*rows, spread_row(task, name, planner.variant | about, ends)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", default=["maze2d-umaze"])
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a token")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1, 5, 10, 20])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.0, 0.1, 0.3, 1.0])
    parser.add_argument("--draws", type=int, default=1, help="futures of Monte Carlo Tree Guidance")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the starts")
    parser.add_argument("--episodes", type=int, default=20, help="starts of each seed")
    parser.add_argument("--device", help="of the network; without it the GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("docs/results/delay.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/delay.png"))
    rows: list[Row] = []
    asked, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    for checkpoint in asked.checkpoints:
        for found in rows_of(checkpoint, asked):
            rows += found
            tell(found)
            write(asked.out, rows, begin)  # what is stopped keeps what it has
    ratios, panels = panels_of(rows, "delay / steps", PANELS)
    line_panels([f"{ratio:g}" for ratio in ratios], panels, xlabel="delay / steps",
                group=len(asked.scales)).savefig(asked.picture)


if __name__ == "__main__":
    main()
