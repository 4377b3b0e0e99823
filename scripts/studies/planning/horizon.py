"""One checkpoint plans half, once and twice as long as what it was trained on, nothing retrained; beside Diffuser's.

python scripts/studies/planning/horizon.py [CHECKPOINT ...] [--factors .5 1 2] [--out docs/results/horizon.json]

A checkpoint with Diffuser's network (net=temporal, trained to end at a goal shown clean) is planned with as Diffuser's.
Episodes stay as long as the task has them: behind a plan's end its last state is held, or, with replanning, the next
plan follows. On starts of their own each length has the guidance scale of Diffusion Forcing, or order and eta of
Diffuser, tuned.
Rows: scores, and in_wall, the share of plans that go through a wall before they arrive. A network that is not causal
also plans the shorter length with pure noise behind it up to the length of its training, as for a length not yet known.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from findings import tell, write
from parts import best_trial, starts_of

import dforce
from dforce.nets.temporal import TemporalUNet
from dforce.planning.control import tracking
from dforce.planning.diffuser import DiffuserPlanner
from dforce.planning.evaluation import compare_methods, planned
from dforce.planning.planner import DiffusionPlanner, planner_around
from dforce.planning.tasks import Task, trained_task
from dforce.report.rows import Row
from dforce.train.checkpoint import Bundle
from dforce.train.precision import device_of

SAMPLERS = [{"order": order, "eta": eta} for order in (1, 2) for eta in (0.0, 1.0)]  # as the benchmark tunes Diffuser


def ways(bundle: Bundle, asked: argparse.Namespace, factor: float) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(method, planner, control of its episodes) of each way to plan `factor` times the training's length."""
    trained = bundle.layout["horizon"]
    length = round(factor * trained)
    if isinstance(bundle.denoiser.net, TemporalUNet):
        yield "Diffuser", planner_around(bundle, DiffuserPlanner, horizon=length, steps=asked.diffuser_steps), {}
        return
    name = f"Diffusion Forcing, {type(bundle.denoiser.net).__name__}"
    planner = planner_around(bundle, horizon=length, steps=asked.steps, delay=asked.delay, draws=asked.draws)
    yield name, planner, {}
    if factor < 1:
        yield f"{name}, replanned", planner, {"replan_every": length}
    if factor < 1 and not bundle.denoiser.causal:
        yield f"{name}, padded", planner.with_(pad_to=trained), {}


def rows_of(checkpoint: str, task: Task, bundle: Bundle, asked: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of one length and way after the other."""
    starts, goals = starts_of(task, asked.episodes, asked.seeds)
    for factor in asked.factors:
        for name, planner, control in ways(bundle, asked, factor):
            about = {"checkpoint": Path(checkpoint).name, "of training": factor}
            guided = isinstance(planner, DiffusionPlanner)
            settings = [{"scale": scale} for scale in asked.scales] if guided else SAMPLERS
            planner, trials = best_trial(task, planner, tracking(), settings, episodes=asked.tune_episodes, **control)
            about["trials"] = len(trials)
            method = planned(name, task.world, planner, tracking(), variant=about, **control)
            yield compare_methods(task.world, [method], starts, goals, task=task.name).rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", default=["maze2d-umaze"])
    parser.add_argument("--factors", type=float, nargs="+", default=[0.5, 1.0, 2.0])
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a token")
    parser.add_argument("--diffuser-steps", type=int, default=64, help="denoising steps of Diffuser")
    parser.add_argument("--delay", type=int, default=5, help="of Diffusion Forcing's matrix")
    parser.add_argument("--scales", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--draws", type=int, default=1, help="futures of Monte Carlo Tree Guidance")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the starts")
    parser.add_argument("--episodes", type=int, default=20, help="starts of each seed")
    parser.add_argument("--tune-episodes", type=int, default=40)
    parser.add_argument("--device", help="of the network; without it the GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("docs/results/horizon.json"))
    asked, begin, rows = parser.parse_args(), time.monotonic(), []
    torch.set_num_threads(1)
    for checkpoint in asked.checkpoints:
        bundle = dforce.load(checkpoint, device=device_of(asked.device))
        for found in rows_of(checkpoint, trained_task(bundle.layout), bundle, asked):
            rows += found
            tell(found)
            write(asked.out, rows, begin)  # after each: what is stopped keeps what it has


if __name__ == "__main__":
    main()
