"""A denoiser learnt from draws of the AR(1) process of tests/gaussian_bed.py, kept as a checkpoint that goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dforce.core.denoiser import Precond
from dforce.core.loss import Levels, even_log_snr, independent, v_weight
from dforce.core.noise import seed_of
from dforce.core.schedule import Schedule
from dforce.data import Batch
from dforce.runs.progress import Ticker
from dforce.train.checkpoint import CheckpointError, build_denoiser, keep_last, load, load_state, save, step_folder
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the process and its exact denoisers
from tests.gaussian_bed import ar1

DATA = 2              # stream of randomness, beside those that training draws from
SAVE_EVERY = 1000     # steps
BATCH, HORIZON = 128, 32


def batches(seed: int, horizon: int) -> Any:
    """step -> [BATCH, horizon, 1] draws of the process, a function of (seed, step) only."""
    def batch_at(step: int) -> Batch:
        x = ar1(BATCH, horizon, torch.Generator().manual_seed(seed_of(seed, step, DATA)))
        return Batch(x, torch.ones(BATCH, horizon, dtype=torch.bool), {}, torch.ones(BATCH, dtype=torch.bool))
    return batch_at


def planned(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """`even_log_snr` in half of the sequences, else a random row of a random pyramid of 40 steps, of any delay up to
    autoregressive: a clean past, a few tokens on their way, a future of pure noise.

    A network that sees all tokens at once is shown these by the planner's matrices, and independent levels all but
    never make one. A causal network is not shown the future, and needs no more than `even_log_snr`.
    """
    steps, (batch, time) = 40, shape
    delay = (steps * torch.rand(batch, 1, generator=generator) ** 2).round()
    row = torch.rand(batch, 1, generator=generator) * (steps + delay * (time - 1))
    pyramid = schedule.grid(steps)[(row - delay * torch.arange(time)).round().long().clamp(0, steps)]
    chosen = torch.rand(batch, 1, generator=generator) < 0.5
    return torch.where(chosen, pyramid, even_log_snr(schedule, shape, generator))


def learn(folder: Path, net: dict[str, Any], *, seed: int, steps: int, horizon: int = HORIZON, lr: float = 3e-3,
          cap: float = 100.0, levels: Levels = independent,
          precision: Literal["auto", "fp32", "bf16"] = "auto") -> Precond:
    """The network of the configuration `net` after `steps` steps: its averaged weights, in float32.

    Goes on where `folder` stopped; bit for bit as if it had not, on the same machine.
    """
    config = {"net": net, "schedule": {"_target_": "dforce.core.schedule.linear", "levels": 1000}, "predict": "v"}
    layout = {"event_shape": [1], "horizon": horizon, "dataset": "AR(1), rho .9"}
    try:
        resume = load_state(folder)
    except CheckpointError:  # nothing there yet
        resume = None
    if resume is not None and resume.step >= steps:
        return load(folder).denoiser
    torch.manual_seed(seed)
    denoiser = build_denoiser(config, layout)
    objective = ForcingObjective(denoiser, denoiser.schedule, levels=levels, weight=v_weight(cap))
    logs = fit(objective, batches(seed, horizon), lr=lr, steps=steps, warmup=min(500, steps // 10), seed=seed,
               precision=precision, resume=resume, device="cpu")
    with Ticker(steps - (resume.step if resume else 0), folder.name) as ticker:
        for log in logs:
            ticker.advance()
            if log.step % SAVE_EVERY == 0 or log.step == steps:
                save(step_folder(folder / "checkpoints", log.step), log.training.state(), config=config, layout=layout)
                keep_last(folder / "checkpoints", 1)
    return load(folder).denoiser
