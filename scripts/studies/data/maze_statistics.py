"""Statistics of generated maze data at full size against those of the released maze2d-v1 files.

python scripts/studies/data/maze_statistics.py [--seeds 3] [--out docs/results/maze_statistics.json]
The released numbers are the normalisation constants that the code of Diffusion Forcing's paper ships with. Every
generated one is a mean over seeds, with its 95% t-interval between seeds.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from dforce.envs import generate
from dforce.report.rows import write_results
from dforce.runs.folder import environment, results_header

METRICS = {"mean x": "m", "mean y": "m", "std x": "m", "std y": "m", "std vx": "m/s", "std vy": "m/s",
           "mean fx": "", "mean fy": "", "std fx": "", "std fy": "", "mean reward": "", "std reward": ""}
RELEASED = {  # in the order of METRICS, then the number of transitions
    "umaze": (1.9328, 2.3745, 0.8997, 0.7093, 2.2129, 2.4682, 0.00154, 0.00434, 0.7043, 0.7506, 0.08125, 0.27322,
              1_000_000),
    "medium": (3.5093, 3.4766, 1.3371, 1.5210, 2.3408, 2.3694, 0.00124, 0.00125, 0.7398, 0.7459, 0.02367, 0.15201,
               2_000_000),
    "large": (3.7296, 5.3047, 1.8070, 2.5688, 2.4369, 2.6494, 0.00101, 0.00078, 0.7249, 0.7395, 0.00892, 0.09404,
              4_000_000),
}
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided 95% quantiles of Student's t for so many seeds


def statistics(maze: str, steps: int, seed: int) -> np.ndarray:
    """[12], in the order of METRICS, of `steps` transitions."""
    made = generate(maze, steps=steps, chains=200, seed=seed)
    states, actions, rewards = made["observations"][:, :-1], made["actions"], made["rewards"]
    return np.concatenate([states.mean((0, 1))[:2], states.std((0, 1)), actions.mean((0, 1)), actions.std((0, 1)),
                           [rewards.mean(), rewards.std()]])


def rows(maze: str, seeds: int) -> list[dict[str, Any]]:
    """A row a number, of the released file and of ours."""
    *released, steps = RELEASED[maze]
    runs = np.stack([statistics(maze, steps, seed) for seed in range(seeds)])
    half = T95[seeds] * runs.std(0, ddof=1) / np.sqrt(seeds)
    common = {"task": f"maze2d-{maze}", "n": steps, "higher_is_better": None}
    found = []
    for i, (metric, unit) in enumerate(METRICS.items()):
        mean, width = float(runs[:, i].mean()), float(half[i])
        found.append(common | {"method": "released", "variant": {}, "metric": metric, "value": released[i],
                               "low": None, "high": None, "seeds": 1, "unit": unit})
        found.append(common | {"method": "generated", "variant": {"noise": 0.5, "difference": mean - released[i]},
                               "metric": metric, "value": mean, "low": mean - width, "high": mean + width,
                               "seeds": seeds, "unit": unit})
        print(f"{maze:8}{metric:14}{released[i]:10.5f}{mean:10.5f}  +-{width:8.5f}{mean - released[i]:10.5f}"
              f"{100 * (mean / released[i] - 1):9.2f}%")
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T95))
    parser.add_argument("--out", type=Path, default=Path("docs/results/maze_statistics.json"))
    asked, begin, about = parser.parse_args(), time.monotonic(), environment()
    print(f"{'maze':8}{'':14}{'released':>10}{'generated':>10}  {'95%':>10}{'diff.':>10}{'relative':>10}")
    table = [row for maze in RELEASED for row in rows(maze, asked.seeds)]
    write_results(asked.out, results_header(about, round(time.monotonic() - begin, 1)), table)
    print(f"written to {asked.out}")
