"""Composition on a plane: with full memory a model repeats its demonstrations, with short memory it composes new paths.

python scripts/studies/planning/composition.py [--seeds 3] [--steps 5000] [--runs runs/composition] [--out FILE]

Demonstrations cross an X from left to right and end in the corner opposite to their first. One small GRU a seed learns
them (about two minutes of one core; it stays in --runs), and draws paths from the same weights with all of their past
in its state, or with a state that is begun anew before every plan, from the last tokens alone. Rows: the shares of
paths as demonstrated, of composed ones (V and its reverse: to the other corner on the right), and of neither.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from crossing import KINDS, crossings, kinds, levels, walk, windows
from findings import shares, tell, write
from panels import path_panels

from dforce.core.denoiser import Precond
from dforce.core.loss import v_weight
from dforce.report.plots.style import MUTED, PALETTE
from dforce.runs.progress import progress
from dforce.train.checkpoint import CheckpointError, build_denoiser, load, load_state, save, step_folder
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective

TOKENS, STACK, BATCH, PATHS, DRAWN = 10, 4, 128, 400, 120
CONFIG = {"net": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 64}, "predict": "x0",
          "schedule": {"_target_": "dforce.core.schedule.linear", "levels": 1000}}
LAYOUT = {"event_shape": [2 * STACK], "stack": STACK, "horizon": TOKENS * STACK, "static": {"start": 2},
          "dataset": "paths that cross an X"}
DEMONSTRATED, FULL, SHORT = "demonstrations", "full memory", "position only"
WAYS: dict[str, dict[str, Any]] = {FULL: {"memory": None, "every": 1}, SHORT: {"memory": 0, "every": 1},
        "position only, long plans": {"memory": 0, "every": 2}, "one token": {"memory": 1, "every": 1},
        "two tokens": {"memory": 2, "every": 1}}


def learnt(folder: Path, seed: int, steps: int) -> Precond:
    """The averaged weights after `steps` steps, trained unless they are in `folder`."""
    try:
        if load_state(folder).step == steps:
            return load(folder).denoiser
    except CheckpointError:  # nothing there yet
        pass
    torch.manual_seed(seed)
    denoiser = build_denoiser(CONFIG, LAYOUT)
    # Where a path turns is decided at high noise, which min-SNR all but ignores: v weighs it by one.
    objective = ForcingObjective(denoiser, denoiser.schedule, levels=levels, weight=v_weight(50.0))
    batches = windows(tokens=TOKENS, stack=STACK, batch=BATCH, seed=seed)
    logs = fit(objective, batches, lr=3e-3, steps=steps, warmup=100, ema=0.99, precision="fp32", seed=seed,
               device="cpu")
    *_, last = progress(logs, f"seed {seed}", total=steps)
    save(step_folder(folder / "checkpoints", steps), last.training.state(), config=CONFIG, layout=LAYOUT)
    return load(folder).denoiser


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5000, help="of training")
    parser.add_argument("--runs", type=Path, default=Path("runs/composition"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/composition.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/composition.png"))
    asked, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)  # of so small a network, more of them only wait for each other
    networks = [learnt(asked.runs / str(seed), seed, asked.steps) for seed in range(asked.seeds)]
    made = {DEMONSTRATED: [crossings(PATHS, TOKENS * STACK + 1, np.random.default_rng([1001, seed]))
                           for seed in range(asked.seeds)]}
    for name, way in WAYS.items():  # from where the demonstrations begin
        made[name] = [walk(network, network.schedule, torch.from_numpy(shown[:, 0]).float(), tokens=TOKENS, seed=seed,
                           **way).double().numpy()
                      for seed, (network, shown) in enumerate(zip(networks, made[DEMONSTRATED], strict=True))]
    rows = [row for name, runs in made.items()
            for row in shares("crossing", name, {key: "all" if value is None else value
                                                 for key, value in WAYS.get(name, {}).items()}, KINDS,
                              [kinds(paths) for paths in runs])]
    tell(rows)
    write(asked.out, rows, begin)
    notes = {row["method"]: f"{100 * row['value']:.0f}% composed" for row in rows if row["metric"] == KINDS[1]}
    panels = {name: (made[name][0][:DRAWN], kinds(made[name][0][:DRAWN])) for name in (DEMONSTRATED, FULL, SHORT)}
    colors = dict(zip(KINDS, (PALETTE[0], PALETTE[1], MUTED), strict=True))
    path_panels(panels, colors, notes=notes).savefig(asked.picture)


if __name__ == "__main__":
    main()
