"""Does a rollout keep the law of a slowly decaying process? Two AR(2) processes side by side, pole .98, period 9.

python scripts/studies/laws/slow_decay.py [--only 0 1 ...] [--out FILE]

The exact denoiser, then a GRU of width 64 for every training of TRAININGS; of each a rollout of 320 tokens, the last
160 judged: 20 second-order steps, eta 0. A disturbance decays by half in 34 tokens, so a window of training holds about
one such time. Judged beside the law: the error of one step at pure noise after a true past, which is there before any
rollout. --only keeps the rows that the file has of the others.
"""

import argparse
import copy
import itertools
import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser, Precond
from dforce.core.loss import Levels, even_log_snr, fused_snr, independent, v_weight
from dforce.core.matrix import autoregressive
from dforce.core.noise import Noise, seed_of
from dforce.core.rollout import rollout
from dforce.core.schedule import linear
from dforce.data import Batch
from dforce.nets.recurrent import RecurrentNet
from dforce.report.rows import Row, make_row, write_results
from dforce.report.statistics import bootstrap_of
from dforce.runs.folder import environment, results_header
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective

POLE, PERIOD, BATCH, WINDOW, BURN_IN = 0.98, 9, 64, 32, 200
PHI = (2 * POLE * math.cos(2 * math.pi / PERIOD), -POLE**2)
INNOVATION = math.sqrt((1 + PHI[1]) * ((1 - PHI[1])**2 - PHI[0]**2) / (1 - PHI[1]))  # of a process of std 1
TOKENS, SEQUENCES, COUNTED, STEPS = 320, 256, 160, 20
LEVELS: dict[str, Levels] = {"power 1": independent, "power 2": partial(independent, power=2.0),
          "power 3": partial(independent, power=3.0), "even in log-SNR": even_log_snr}
WEIGHTS = {"fused SNR": fused_snr(decay=0.9), "v, cap 100": v_weight(100.0)}
TRAININGS = [  # levels, weight, steps, number of the network; the windows have 32 tokens
    ("power 1", "fused SNR", 3000, 0), ("power 3", "v, cap 100", 3000, 0), ("power 1", "v, cap 100", 3000, 0),
    ("power 3", "fused SNR", 3000, 0), ("power 2", "fused SNR", 3000, 0), ("even in log-SNR", "v, cap 100", 3000, 0),
    ("even in log-SNR", "fused SNR", 3000, 0), ("even in log-SNR", "v, cap 100", 6000, 0),
    ("power 1", "fused SNR", 3000, 1), ("even in log-SNR", "v, cap 100", 3000, 1),
]


class Exact(Denoiser):
    """E[x_t | x_t at its level, a clean past]; state: the last two tokens, [B, 2, 2]."""

    causal = True
    schedule = linear(1000)

    def init_state(self, batch: int, cond: Any = None) -> Tensor:
        return torch.zeros(batch, 2, 2)

    def absorb(self, x: Tensor, level: Tensor, state: Tensor, cond: Any = None) -> Tensor:
        return torch.cat([state, x], 1)[:, -2:]

    def __call__(self, x: Tensor, level: Tensor, state: Tensor, cond: Any = None) -> tuple[Tensor, Tensor]:
        past = torch.cat([state, x], 1)
        mean, (alpha, sigma) = PHI[0] * past[:, 1:-1] + PHI[1] * past[:, :-2], self.schedule(level, x)
        gain = alpha * INNOVATION**2 / (alpha**2 * INNOVATION**2 + sigma**2)
        return (mean + gain * (x - alpha * mean)).to(x.dtype), past[:, -2:]


def process(batch: int, time: int, generator: torch.Generator) -> Tensor:
    """[B, T, 2] draws of the stationary process, std 1."""
    noise = INNOVATION * torch.randn(BURN_IN + time, batch, 2, generator=generator)
    x = [noise[0], noise[1]]
    for each in noise[2:]:
        x.append(PHI[0] * x[-1] + PHI[1] * x[-2] + each)
    return torch.stack(x[BURN_IN:], 1)


def batches(pool: Tensor, seed: int) -> Any:
    """step -> [BATCH, WINDOW, 2] windows of long draws of the process, a function of (seed, step) only."""
    def batch_at(step: int) -> Batch:
        generator = torch.Generator().manual_seed(seed_of(seed, step, 2))
        row = torch.randint(len(pool), (BATCH, 1), generator=generator)
        first = torch.randint(pool.shape[1] - WINDOW + 1, (BATCH, 1), generator=generator)
        return Batch(pool[row, first + torch.arange(WINDOW)], torch.ones(BATCH, WINDOW, dtype=torch.bool), {},
                     torch.ones(BATCH, dtype=torch.bool))
    return batch_at


def learnt(levels: str, weight: str, steps: int, seed: int, pool: Tensor) -> Precond:
    torch.manual_seed(seed)
    denoiser = Precond(RecurrentNet((2,), width=64), linear(1000), "v")
    objective = ForcingObjective(denoiser, linear(1000), levels=LEVELS[levels], weight=WEIGHTS[weight])
    for log in fit(objective, batches(pool, seed), lr=2e-3, steps=steps, warmup=200, precision="fp32", seed=seed,
                   device="cpu"):
        training = log.training
    with training.averaged():
        return copy.deepcopy(denoiser).eval()


@torch.no_grad()
def step_error(denoiser: Any, pool: Tensor) -> float:
    """rms of the mean that is predicted of a token of pure noise after a true past of 24 to 31 tokens, less the true
    conditional mean."""
    x, schedule = pool[:, :32], denoiser.schedule
    state, errors = denoiser.init_state(len(x)), []
    for t in range(32):
        now = slice(t, t + 1)
        noise = Noise(t)(0, torch.arange(1), x[:, now])
        guess, _ = denoiser(noise, torch.full((len(x), 1), schedule.levels), state)
        if t >= 24:
            errors.append((guess[:, 0] - PHI[0] * x[:, t - 1] - PHI[1] * x[:, t - 2]).square().mean())
        state = denoiser.absorb(x[:, now], torch.zeros(len(x), 1, dtype=torch.long), state)
    return float(torch.stack(errors).mean().sqrt())


def fitted(x: Tensor) -> tuple[float, float]:
    """(pole, period) of the AR(2) that fits x [B, T, 2] best."""
    after, past = x[:, 2:].flatten(), torch.stack([x[:, 1:-1].flatten(), x[:, :-2].flatten()], 1)
    first, second = torch.linalg.lstsq(past, after).solution.tolist()
    pole = math.sqrt(max(-second, 1e-9))
    return pole, 2 * math.pi / math.acos(max(-1.0, min(1.0, first / (2 * pole))))


@torch.no_grad()
def judged(denoiser: Any, pool: Tensor) -> dict[str, Any]:
    """The figures of one network."""
    schedule = denoiser.schedule
    run = rollout(denoiser, schedule, autoregressive(schedule.grid(STEPS), 32), denoiser.init_state(SEQUENCES), (2,),
                  batch=SEQUENCES, noise=Noise(1))
    x = torch.cat([chunk for chunk, _ in itertools.islice(run, TOKENS // 32)], 1)[:, -COUNTED:]
    square = x.square().mean((1, 2)).numpy()
    pole, period = fitted(x)
    std = bootstrap_of(lambda rows: float(np.sqrt(square[rows].mean())), SEQUENCES, rng=np.random.default_rng(0))
    return {"std": std, "pole": pole, "period": period, "step error": step_error(denoiser, pool)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of trainings, from 0; default all")
    parser.add_argument("--out", type=Path, default=Path("docs/results/slow_decay.json"))
    args, begin, about = parser.parse_args(), time.monotonic(), environment()
    torch.set_num_threads(1)  # of so small a network, more of them only wait for each other
    pool, held_out = (process(512, 2000, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    chosen = [TRAININGS[number] for number in args.only or range(len(TRAININGS))]
    before = json.loads(args.out.read_text())["rows"] if args.only else []
    rows: list[Row] = [row for row in before if row["variant"] and tuple(row["variant"].values()) not in chosen]

    def keep(method: str, denoiser: Any, variant: dict[str, Any]) -> None:
        for metric, value in judged(denoiser, held_out).items():
            rows.append(make_row("AR(2), pole .98", method, metric, value, n=SEQUENCES, variant=variant))

    keep("exact denoiser", Exact(), {})
    for training in chosen:
        variant = dict(zip(("levels", "weight", "training steps", "network"), training, strict=True))
        started = time.process_time()
        keep("GRU", learnt(*training, pool), variant)
        print(variant, {row["metric"]: row["value"] for row in rows[-4:]}, f"{time.process_time() - started:.0f} s",
              flush=True)
        write_results(args.out, results_header(about, round(time.monotonic() - begin, 1)), rows)


if __name__ == "__main__":
    main()
