"""`dforce train`: a data set to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dforce.config import build
from dforce.data import Windows, load_episodes
from dforce.runs.folder import RunFolder
from dforce.runs.training_run import FEW, Keeper, Kind, Prepared, carry_out, has_checkpoint, run_kind
from dforce.train.checkpoint import build_denoiser, load, load_state
from dforce.train.fit import TrainingState

__all__ = ["Keeper", "Prepared", "prepare", "run", "train"]

FOLDER = False  # a run that is resumed goes on in the folder it has, so the choice of the folder is made here


def run(cfg: Any, _: None = None) -> None:
    """Trains as cfg says; checkpoints, metrics and the page go into the run folder, the old one of a resumed run."""
    run_kind(KIND, cfg)


def train(cfg: Any, folder: RunFolder, *, late: Callable[[], bool] = lambda: False) -> Path:
    """The newest checkpoint of the finished run. cfg: the keys of configs/train.yaml.

    late: asked after every step; once true, the run writes a checkpoint and ends in KeyboardInterrupt, as on Ctrl-C.
    """
    return carry_out(prepare(cfg), cfg, folder, late)


def prepare(cfg: Any) -> Prepared:
    """Data, model and training loop of cfg, or ValueError."""
    windows, held_out = _windows(cfg)
    layout = {**windows.layout, "event_shape": [*windows.event_shape], "static": _static(windows)}
    torch.manual_seed(cfg.seed)
    config = OmegaConf.to_container(cfg, resolve=True)
    denoiser = build_denoiser(config, layout, trust=cfg.trust)
    carry = {"carry": True} if cfg.carry else {}
    objective = build(cfg.objective, trust=cfg.trust)(denoiser, denoiser.schedule, **carry)
    state = _state(cfg, windows)
    options = FEW if cfg.fast_dev_run else {}
    logs = build(cfg.fit, trust=cfg.trust)(objective, windows.batch_at, seed=cfg.seed, resume=state,
                                           shards=windows.virtual_shards, validate=held_out and held_out.batch_at,
                                           **options)
    return Prepared(logs, {"config": config, "layout": layout, "normalizer": windows.normalizer},
                    state.step if state else 0, options.get("steps", cfg.fit.steps))


def _windows(cfg: Any) -> tuple[Windows, Windows | None]:
    episodes = load_episodes(cfg.data)
    shape = {"horizon": cfg.horizon, "stack": cfg.stack, "batch": cfg.batch, "seed": cfg.seed,
             "held_out": cfg.held_out, "sequential": cfg.carry}
    windows = Windows(episodes, **shape)
    return windows, Windows(episodes, split="val", normalizer=windows.normalizer, **shape) if cfg.held_out else None


def _static(windows: Windows) -> dict[str, int]:
    lo, hi = windows.layout["observation"]
    return {"start": hi - lo}


def _state(cfg: Any, windows: Windows) -> TrainingState | None:
    """Where cfg.resume stopped; None for a new run, and for one that was stopped before its first checkpoint."""
    if not cfg.resume:
        return None
    where = Path(cfg.resume)
    if not has_checkpoint(where):
        return None
    before, now = load(where, trust=cfg.trust).normalizer, windows.normalizer
    if before is None or not (torch.equal(before.mean, now.mean) and torch.equal(before.std, now.std)):
        raise ValueError(f"the data {cfg.data} are not those that {where} was trained on (their means or deviations "
                         "differ): bring the old ones back, or start a new run")
    return load_state(where)


KIND = Kind("train", frozenset({"fit", "data", "net", "horizon", "stack"}), prepare, carry_out,
            lambda folder: f"open {folder / 'index.html'}; a maze is planned in with: dforce plan checkpoint={folder}")
