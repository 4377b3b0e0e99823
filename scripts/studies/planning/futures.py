"""Do sampled futures guide elsewhere than the estimate? Monte Carlo Tree Guidance beside plain guidance, row by row.

python scripts/studies/planning/futures.py [CHECKPOINT ...] [--episodes 100] [--draws 4 32] [--out
docs/results/futures.json]

Plans from blocked starts are made with plain guidance. At some rows of the matrix the same noisy plans are also guided
by futures: kept up to a split and drawn anew behind it ("tree", the paper's), or all tokens drawn from where they are
("posterior", what the law of the tilt asks for), combined by their mean or by log-mean-exp. Of each: by what guidance
moves the noisy tokens in that step, against no guidance. Rows: the cosine between that displacement and plain
guidance's; the ratio of their lengths; and the cosine between two estimates from other noise, which is the noise of the
futures themselves. Intervals: bootstrap over plans of all checkpoints.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from findings import tell, write
from parts import starts_of
from torch import Tensor

import dforce
from dforce.core.denoiser import Denoiser
from dforce.core.noise import Noise
from dforce.core.sample import sample
from dforce.core.step import Step
from dforce.core.transition import transition
from dforce.planning.planner import DiffusionPlanner, planner_around
from dforce.planning.scores import blocked_mask
from dforce.planning.tasks import trained_task
from dforce.report.rows import make_row
from dforce.report.statistics import bootstrap_interval
from dforce.train.precision import device_of

SHARES = (0.1, 0.3, 0.5, 0.7)  # of the rows of the matrix
WAYS = {"tree, mean": {"branch": "tree", "reduce": "mean"},
        "tree, log-mean-exp": {"branch": "tree", "reduce": "logmeanexp"},
        "posterior, mean": {"branch": "posterior", "reduce": "mean"},
        "posterior, log-mean-exp": {"branch": "posterior", "reduce": "logmeanexp"}}
UNITS = {"cosine": "with plain guidance", "length": "times that of plain guidance", "repeat_cosine": "of two estimates"}
Found = dict[tuple[str, int, float], dict[str, list[Tensor]]]  # (way, draws, share) -> metric -> values [N] of each net


def displaced(planner: DiffusionPlanner, denoiser: Denoiser, x: Tensor, step: Step, cond: Any) -> Tensor:
    """Where `denoiser` would move the noisy plans x [N, T, *E] in this step, [N, T * E]."""
    x0 = denoiser(x, step.level, denoiser.init_state(len(x), cond), cond)[0].detach()
    return transition(planner.schedule, x, x0, step.level, step.to, eta=planner.eta).mean.flatten(1)


def compared(planner: DiffusionPlanner, starts: np.ndarray, goals: np.ndarray, steps: int, draws: list[int],
             ) -> Iterator[tuple[tuple[str, int, float], dict[str, Tensor]]]:
    """The metrics [N] of each way, number of draws and share of the rows, for one network."""
    x, cond, goal = planner.start(starts, goals, steps, Noise(0))
    tokens = x.shape[1]
    plain, matrix = planner.guide(goal, Noise(0), tokens), planner.matrix(tokens)
    at = {int(share * (len(matrix) - 1)): share for share in SHARES}
    cosine: Callable[[Tensor, Tensor], Tensor] = torch.nn.functional.cosine_similarity
    for row, step in enumerate(sample(plain, planner.schedule, matrix, x, cond=cond, order=planner.order)):
        if row in at:
            base, reference = (displaced(planner, each, x, step, cond) for each in (planner.denoiser, plain))
            reference = reference - base
            for (way, options), n in itertools.product(WAYS.items(), draws):
                other = planner.with_(draws=n, options=tuple(options.items()))
                first, again = (displaced(planner, other.guide(goal, Noise(seed), tokens), x, step, cond) - base
                                for seed in (1, 2))
                yield (way, n, at[row]), {"cosine": cosine(first, reference), "repeat_cosine": cosine(first, again),
                                          "length": first.norm(dim=1) / reference.norm(dim=1)}
        x = step.x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="*", default=["maze2d-umaze"])
    parser.add_argument("--steps", type=int, default=20, help="denoising steps of a token")
    parser.add_argument("--delay", type=int, default=1)
    parser.add_argument("--scale", type=float, default=0.3)
    parser.add_argument("--draws", type=int, nargs="+", default=[4, 32])
    parser.add_argument("--lookahead", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the starts")
    parser.add_argument("--episodes", type=int, default=100, help="starts, of which the blocked ones are planned from")
    parser.add_argument("--device", help="of the network; without it the GPU if there is one")
    parser.add_argument("--out", type=Path, default=Path("docs/results/futures.json"))
    asked, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    found: Found = {}
    for checkpoint in asked.checkpoints:
        bundle = dforce.load(checkpoint, device=device_of(asked.device))
        task = trained_task(bundle.layout)
        starts, goals = starts_of(task, asked.episodes, [asked.seed])
        blocked = blocked_mask(task.world, starts, goals)
        planner = planner_around(bundle, steps=asked.steps, delay=asked.delay, scale=asked.scale,
                                 lookahead=asked.lookahead)
        for key, values in compared(planner, starts[blocked], goals[blocked], task.steps, asked.draws):
            for metric, value in values.items():
                found.setdefault(key, {}).setdefault(metric, []).append(value.double().cpu())
    common = {"steps": asked.steps, "delay": asked.delay, "scale": asked.scale, "lookahead": asked.lookahead,
              "starts": "blocked"}
    rows = [make_row(task.name, f"{way}, n={n}", metric,
                     bootstrap_interval(torch.cat(values).numpy(), rng=np.random.default_rng(0)),
                     variant=common | {"draws": n, "share": share}, seeds=len(asked.checkpoints), unit=UNITS[metric])
            for (way, n, share), metrics in found.items() for metric, values in metrics.items()]
    tell(rows)
    write(asked.out, rows, begin)


if __name__ == "__main__":
    main()
