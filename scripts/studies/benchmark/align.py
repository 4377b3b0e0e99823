"""Times an epoch of policy-gradient tuning against a plain loop: python scripts/studies/benchmark/align.py [key=value
...]

    nets=[mlp,unet]  parts=[epoch,reward]  rounds=5  samples=16  steps=10  rows=4  held=128  epochs=20  seeds=3
    out=FILE  quick=true

An epoch is: sample `samples` runs of `steps` steps that have a density, ask the reward, one update of DDPO-IS by all of
them. The plain loop goes as published trainers do: one step of a microbatch of runs forward and backward, then the
next. Here all steps of a microbatch are one batch. Gradients are compared before a clock runs. Times are this process's
own seconds on one thread, the ways taking turns, so that a busy machine slows them alike. Memory is that of tensors in
an epoch of `held` samples, drawn in one batch unless said: sampling without gradient needs the most.

mlp: the shipped digits model, reward JPEG kilobytes. unet: a small `UNet2DModel` of diffusers on 8x8 pixels, untrained,
reward the mean of the pixels. "To equal reward": the plain loop's gradients being equal, it takes as many epochs as
batched replay of all steps, each at the plain loop's price; a share of the steps takes more epochs, at less.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from plain_loop import Bed, Plain, make_bed
from torch import Tensor

from dforce.align import AlignObjective, OnPolicy, Sampler, policy_gradient, standardised
from dforce.benchmarks.speed.cost import peak_memory
from dforce.benchmarks.speed.harness import Timings, Way, all_timings, median_row, race
from dforce.benchmarks.speed.sizes import parameters
from dforce.core.tree import select
from dforce.report.rows import Row, make_row, write_results
from dforce.report.table import markdown_table
from dforce.runs.folder import environment, results_header
from dforce.train.fit import fit

DEFAULTS = {"nets": ["mlp", "unet"], "parts": ["epoch", "reward"], "rounds": 5, "seconds": 120.0, "samples": 16,
            "steps": 10, "held": 128, "epochs": 20, "seeds": 3, "fraction": 0.25, "rows": 4, "quick": False,
            "out": None}
QUICK = {"rounds": 3, "seconds": 1.0, "samples": 4, "steps": 3, "held": 4, "epochs": 6, "seeds": 1, "rows": 2}
PLAIN, BATCHED = "plain loop", "batched replay"
PATIENCE = 4  # times the epochs of all steps that a share of them may take
CHECKED = 2  # runs of an epoch whose log-probs `OnPolicy` compares before the update: work that the plain loop has not


# ------------------------------------------------------------------------------------------------------------ ours

class Ours:
    """The same through `OnPolicy` and `fit`: `parts` microbatches of runs, the chosen steps of each one batch."""

    def __init__(self, bed: Bed, samples: int, microbatch: int, *, fraction: float = 1.0, rows: int | None = None,
                 seed: int = 0):
        self.denoiser, self.parts = deepcopy(bed.denoiser), samples // microbatch
        sampler = Sampler(self.denoiser, bed.schedule, bed.matrix, bed.shape, rows=rows)
        self.source = OnPolicy(sampler, bed.reward, bed.ask, samples=samples, credit=standardised, checked=CHECKED,
                               seed=seed)
        self.objective = AlignObjective(self.denoiser, bed.schedule, policy_gradient(fraction=fraction))
        self.logs = fit(self.objective, self.source, lr=bed.lr, steps=10**9, decay="constant", warmup=0, ema=None,
                        weight_decay=0.0, accumulate=self.parts, precision="fp32", device="cpu", seed=seed)

    def run(self) -> None:
        next(self.logs)

    def gradients(self) -> None:
        batch = self.source(0)
        for run in torch.arange(len(batch.x)).chunk(self.parts):
            (self.objective(select(batch, run), torch.Generator().manual_seed(0))[0] / self.parts).backward()


def gradient(make: Callable[[], Plain | Ours]) -> Tensor:
    """Of the first epoch, all parameters in one vector."""
    way = make()
    way.gradients()
    return torch.cat([p.grad.flatten() for p in way.denoiser.parameters() if p.grad is not None])


# ------------------------------------------------------------------------------------------------------- the races

def epoch_race(bed: Bed, cfg: Any) -> tuple[Timings, dict[str, np.ndarray]]:
    """Equal work: the plain loop at microbatch 1 and `rows`, batched replay of as many runs; then a share of steps."""
    chosen: dict[str, Callable[[], Plain | Ours]] = {
        f"{PLAIN}, microbatch 1": partial(Plain, bed, cfg.samples, 1),
        f"{BATCHED}, microbatch 1": partial(Ours, bed, cfg.samples, 1),
        f"{PLAIN}, microbatch {cfg.rows}": partial(Plain, bed, cfg.samples, cfg.rows),
        f"{BATCHED}, microbatch {cfg.rows}": partial(Ours, bed, cfg.samples, cfg.rows)}
    ways = [Way(name, make().run, partial(gradient, make)) for name, make in chosen.items()]
    some = partial(Ours, bed, cfg.samples, cfg.rows, fraction=cfg.fraction)  # other work: not compared, but in turn
    names = [*chosen, _together(cfg)]
    ways.append(Way(names[-1], some().run, partial(gradient, chosen[names[0]])))
    raced = race(ways, rounds=cfg.rounds, seconds=cfg.seconds, timer=time.process_time)
    variant = {"net": bed.name, "parameters": parameters(bed.denoiser), "samples": cfg.samples, "steps": cfg.steps}
    measured = raced.measured("epoch", variant)
    rows = [one for one in measured.rows if one["metric"] != "difference" or one["method"] != names[-1]]
    variant = {**variant, "samples": cfg.held}
    held = {names[0]: Plain(bed, cfg.held, 1), names[1]: Ours(bed, cfg.held, 1),
            names[-1]: Ours(bed, cfg.held, cfg.rows, fraction=cfg.fraction),
            f"{names[-1]}, sampled in two parts": Ours(bed, cfg.held, cfg.rows, fraction=cfg.fraction,
                                                       rows=cfg.held // 2)}
    rows += [make_row("epoch, memory", name, "peak memory", peak_memory(way.run), n=1, variant=variant,
                      unit="MB of tensors", higher=False)
             for name, way in held.items()]
    return measured._replace(rows=rows), raced.seconds


def _together(cfg: Any) -> str:
    """As many rows at a time as microbatch 1 has with all steps, where rows * fraction is 1."""
    return f"{BATCHED}, microbatch {cfg.rows}, {cfg.fraction:g} of the steps"


def curve(bed: Bed, fraction: float, seed: int, epochs: int, target: float = float("inf")) -> np.ndarray:
    """Mean reward of each epoch's samples, for `epochs` epochs or until the target is reached."""
    way = Ours(bed, bed.learn, bed.learn, fraction=fraction, seed=seed)
    rewards: list[float] = []
    while len(rewards) < epochs and np.isnan(reached(np.array(rewards), target)):
        way.run()
        rewards.append(way.source.epochs[-1]["reward"])
    return np.array(rewards)


def reached(curve: np.ndarray, target: float, width: int = 5) -> float:
    """Epochs until the mean of `width` of them is at the target, NaN where it never is."""
    if len(curve) < width:
        return float("nan")
    late = np.flatnonzero(np.convolve(curve, np.ones(width) / width, "valid") >= target)
    return float(late[0] + width) if len(late) else float("nan")


def reward_race(bed: Bed, cfg: Any, seconds: dict[str, np.ndarray]) -> Timings:
    """Own seconds until the reward that all steps reach in `epochs` epochs, less a tenth of the way to it."""
    full, part, runs = [], [], []
    for seed in range(1, cfg.seeds + 1):
        whole = curve(bed, 1.0, seed, cfg.epochs)
        target = whole[-5:].mean() - 0.1 * (whole[-5:].mean() - whole[0])
        some = curve(bed, cfg.fraction, seed, PATIENCE * cfg.epochs, target)
        full.append(reached(whole, target))
        part.append(reached(some, target))
        for name, values in (("all steps", whole), (f"{cfg.fraction:g} of the steps", some)):
            runs += [{"task": "to equal reward", "net": bed.name, "method": name, "seed": seed, "epoch": i,
                      "reward": float(value), "target": float(target)} for i, value in enumerate(values)]
    names = [f"{PLAIN}, microbatch 1", f"{BATCHED}, microbatch 1", _together(cfg)]
    variant = {"net": bed.name, "samples": bed.learn, "steps": cfg.steps}
    epochs = dict(zip(names, (full, full, part), strict=True))
    price = {name: np.median(seconds[name]) * bed.learn / cfg.samples for name in names}
    rows = []
    for name in names:
        if np.isnan(epochs[name]).any():
            print(f"{bed.name}: {name} did not reach the reward in {int(np.isnan(epochs[name]).sum())} runs")
            continue
        spent = np.array(epochs[name]) * price[name]
        task = "to equal reward"
        rows.append(median_row(task, name, "epochs", epochs[name], variant=variant, higher=False))
        rows.append(median_row(task, name, "time", spent, variant=variant, unit="s", higher=False))
        rows.append(median_row(task, name, "speed-up", np.array(full) * price[names[0]] / spent, variant=variant,
                               unit="times the first", higher=True))
    for row in rows:
        row["seeds"] = cfg.seeds
    return Timings(rows, runs)


def main() -> None:
    given = OmegaConf.from_cli(sys.argv[1:])
    cfg: Any = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(cfg, True)
    cfg = OmegaConf.merge(cfg, QUICK if given.get("quick") else {}, given)
    torch.set_num_threads(1)
    begin, timings = time.monotonic(), []
    for name in cfg.nets:
        bed = make_bed(name, cfg.steps)
        measured, seconds = epoch_race(bed, cfg)
        timings.append(measured)
        if "reward" in cfg.parts:
            timings.append(reward_race(bed, cfg, seconds))
        print(markdown_table(all_timings(timings).rows), flush=True)
        if cfg.out:
            write(Path(cfg.out), all_timings(timings).rows, begin)


def write(out: Path, rows: list[Row], begin: float) -> None:
    header = results_header(environment(), round(time.monotonic() - begin, 1))
    write_results(out, header | {"note": "seconds are this process's own, ratios are of paired rounds; load average "
                                         f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"},
                  rows)


if __name__ == "__main__":
    main()
