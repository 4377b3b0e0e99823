"""A denoiser learnt from draws of the AR(1) process of tests/gaussian_bed.py, kept as a checkpoint that goes on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from dforce.checkpoint import CheckpointError, build_denoiser, keep_last, load, load_state, save, step_folder
from dforce.data import Batch
from dforce.denoiser import Precond
from dforce.fit import fit
from dforce.loss import ForcingObjective, Levels, independent, v_weight
from dforce.noise import seed_of
from dforce.progress import Ticker

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # the process and its exact denoisers
from gaussian_bed import ar1  # noqa: E402

DATA = 2              # stream of randomness, beside those that training draws from
SAVE_EVERY = 1000     # steps
BATCH, HORIZON = 128, 32
NETS: dict[str, dict[str, Any]] = {
    "GRU": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 64},
    "transformer, no mask": {"_target_": "dforce.nets.transformer.TransformerNet", "causal": False, "width": 64,
                             "depth": 2, "heads": 4},
}


def batches(seed: int, horizon: int) -> Any:
    """step -> [BATCH, horizon, 1] draws of the process, a function of (seed, step) only."""
    def batch_at(step: int) -> Batch:
        x = ar1(BATCH, horizon, torch.Generator().manual_seed(seed_of(seed, step, DATA)))
        return Batch(x, torch.ones(BATCH, horizon, dtype=torch.bool), {}, torch.ones(BATCH, dtype=torch.bool))
    return batch_at


def learn(folder: Path, net: str, *, seed: int, steps: int, horizon: int = HORIZON, lr: float = 3e-3,
          levels: Levels = independent, precision: str = "auto") -> Precond:
    """The network NETS[net] after `steps` steps, its averaged weights in float32. Goes on where `folder` stopped."""
    config = {"net": NETS[net], "schedule": {"_target_": "dforce.schedule.linear", "levels": 1000}, "predict": "v"}
    layout = {"event_shape": [1], "horizon": horizon, "dataset": "AR(1), rho .9"}
    try:
        resume = load_state(folder)
    except CheckpointError:  # nothing there yet
        resume = None
    if resume is None or resume.step < steps:
        torch.manual_seed(seed)
        denoiser = build_denoiser(config, layout)
        objective = ForcingObjective(denoiser, denoiser.schedule, levels=levels, weight=v_weight(cap=100.0))
        with Ticker(steps, f"{net}, seed {seed}") as ticker:
            for log in fit(objective, batches(seed, horizon), lr=lr, steps=steps, ema=0.999, precision=precision,
                           seed=seed, resume=resume, device="cpu"):
                ticker.advance()
                if log.step % SAVE_EVERY == 0 or log.step == steps:
                    state = log.training.state()
                    extra = {"loss": log.metrics["loss"]}
                    save(step_folder(folder / "checkpoints", log.step), state, config=config, layout=layout,
                         extra=extra)
                    keep_last(folder / "checkpoints", 1)
    return load(folder).denoiser
