"""From full sequence to autoregressive: one checkpoint planned with at several delays, its steps staying the same.

python scripts/planning/delay.py [CHECKPOINT ...] [--steps 20] [--delays 0 1 5 10 20] [--out docs/results/delay.json]

A token runs `delay` rows behind the one before it: 0 is full-sequence diffusion, delay = steps next-token prediction.
Each delay is driven at the best of --scales, chosen on starts of their own. Rows: scores; their differences from the
first delay on the same starts; and far_spread, how far apart several plans of one start end, guided and unguided.
Unguided, the largest delay gives what a causal network has learnt, and less spread than there is variety that a matrix
lost. Several checkpoints: such as a GRU and a transformer without its mask.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from record import tell, write

import dforce
from dforce.planning.evaluate import compare, difference, planned
from dforce.planning.execute import tracking
from dforce.planning.studies import around, far_ends, spread_row, starts_of, tuned
from dforce.planning.tasks import trained_task
from dforce.report.study_plots import line_panels, panels_of

PLANS = {"guided": 8, "unguided": 16}  # of each start, for the spread
FAR = {"guided": 8, "unguided": 24}    # starts whose plans are spread
PANELS = {  # of the picture: title -> metric, what its rows have in common
    "score, all starts": ("score", {"starts": "all"}), "score, blocked starts": ("score", {"starts": "blocked"}),
    "reach, blocked starts": ("success", {"starts": "blocked"}),
    "planned states in walls": ("plan_in_wall", {"starts": "all"}),
    "spread of far tokens, guided (m)": ("far_spread", {"guidance": "guided"}),
    "the same, unguided (m)": ("far_spread", {"guidance": "unguided"})}


def rows_of(checkpoint: str, asked: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """The rows of one delay after the other."""
    bundle = dforce.load(checkpoint)
    task, executor = trained_task(bundle.layout), tracking()
    starts, goals = starts_of(task, asked.episodes, asked.seeds)
    net = type(bundle.denoiser.net).__name__
    name = f"{net}, {'causal' if bundle.denoiser.causal else 'non-causal'}"
    first: Any = None
    for delay in asked.delays:
        planner = around(bundle, steps=asked.steps, delay=delay, draws=asked.draws)
        planner, trials = tuned(task, planner, executor, [{"scale": scale} for scale in asked.scales],
                                episodes=asked.tune_episodes)
        about = {"checkpoint": Path(checkpoint).name, "delay / steps": delay / asked.steps, "trials": len(trials)}
        played = compare(task.world, [planned(name, task.world, planner, executor, variant=about)], starts, goals,
                         task=task.name)
        rows, first = played.rows, first or played.reports[0]
        if delay != asked.delays[0]:
            rows += difference(task.name, f"{name}: delay {delay} - delay {asked.delays[0]}", played.reports[0], first)
        for kind, scale in (("guided", planner.scale), ("unguided", 0.0)):
            free, count = planner.with_(scale=scale), FAR[kind]
            ends = far_ends(free, starts[:count], goals[:count], task.steps, plans=PLANS[kind])
            rows.append(spread_row(task, name, {"guidance": kind, **free.variant, **about}, ends))
        yield rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", default=["maze2d-umaze"])
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a token")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1, 5, 10, 20])
    parser.add_argument("--scales", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--draws", type=int, default=1, help="futures of Monte Carlo Tree Guidance")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the starts")
    parser.add_argument("--episodes", type=int, default=20, help="starts of each seed")
    parser.add_argument("--tune-episodes", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("docs/results/delay.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/delay.png"))
    asked, begin, rows = parser.parse_args(), time.monotonic(), []
    torch.set_num_threads(1)
    for checkpoint in asked.checkpoints:
        for found in rows_of(checkpoint, asked):
            rows += found
            tell(found)
            write(asked.out, rows, begin)  # after each delay: what is stopped keeps what it has
    ratios, panels = panels_of(rows, "delay / steps", PANELS)
    line_panels([f"{ratio:g}" for ratio in ratios], panels, xlabel="delay / steps").savefig(asked.picture)


if __name__ == "__main__":
    main()
