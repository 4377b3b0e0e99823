"""`dforce train`: a data set to a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from dforce.checkpoint import build_denoiser, keep_last, load_state, save, step_folder
from dforce.config import build
from dforce.data import Windows, load_episodes
from dforce.fit import Log, stop_requested
from dforce.report.curves import loss_curve
from dforce.run import RunFolder, Ticker

FEW = {"steps": 20, "warmup": 5, "validate_every": 10, "validate_batches": 1}  # fast_dev_run
LINE = 25  # steps a line of metrics.jsonl


def run(cfg: Any, folder: RunFolder) -> None:
    """Trains as cfg says; checkpoints, metrics and the page go into `folder`."""
    train(cfg, folder)


def train(cfg: Any, folder: RunFolder) -> Path:
    """The newest checkpoint of the finished (or stopped) run. cfg: the keys of configs/train.yaml."""
    windows, held_out = _windows(cfg)
    layout = {**windows.layout, "event_shape": [*windows.event_shape], "static": _static(windows)}
    torch.manual_seed(cfg.seed)
    config = OmegaConf.to_container(cfg, resolve=True)
    denoiser = build_denoiser(config, layout, trust=cfg.trust)
    objective = build(cfg.objective, trust=cfg.trust)(denoiser, denoiser.schedule)
    resume = load_state(cfg.resume) if cfg.resume else None
    options = FEW if cfg.fast_dev_run else {}
    logs = build(cfg.fit, trust=cfg.trust)(objective, windows.batch_at, seed=cfg.seed, resume=resume,
                                           shards=windows.virtual_shards, validate=held_out.batch_at, **options)
    written = folder.checkpoints

    def write(log: Log) -> None:
        nonlocal written
        if folder.writes:
            written = save(step_folder(folder.checkpoints, log.step), log.training.state(), config=config,
                           layout=layout, normalizer=windows.normalizer)
            keep_last(folder.checkpoints, cfg.keep)

    with stop_requested() as stop:
        _follow(logs, cfg, folder, write, stop)
    if folder.writes:
        _curve(folder)
    return written


def _windows(cfg: Any) -> tuple[Windows, Windows]:
    episodes = load_episodes(cfg.data)
    shape = {"horizon": cfg.horizon, "stack": cfg.stack, "batch": cfg.batch, "seed": cfg.seed, "held_out": cfg.held_out}
    windows = Windows(episodes, **shape)
    return windows, Windows(episodes, split="val", normalizer=windows.normalizer, **shape)


def _static(windows: Windows) -> dict[str, int]:
    lo, hi = windows.layout["observation"]
    return {"start": hi - lo}


def _follow(logs: Any, cfg: Any, folder: RunFolder, write: Callable[[Log], None], stop: Callable[[], bool]) -> None:
    """Log, show and save what training yields, until it ends or is asked to stop."""
    log, note = None, ""
    with Ticker(None, "train") as ticker:
        for log in logs:
            ticker.total = log.steps
            last, asked = log.step == log.steps, stop()
            if log.step % LINE == 0 or last:  # to read the numbers of a step is to wait for it
                folder.log(log.step, **log.metrics)
                note = f"loss {log.metrics['loss']:.4f}"
            ticker.advance(note=note)
            if log.step % cfg.save_every == 0 or last or asked:
                write(log)
            if asked:
                raise KeyboardInterrupt(f"stopped at step {log.step}; go on with resume={folder.path}")
    if log is None:
        raise ValueError(f"the run in {cfg.resume} has all its steps; raise fit.steps to train further")


def _curve(folder: RunFolder) -> None:
    """media/loss.png from metrics.jsonl."""
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    held_out = [line for line in lines if line.get("val_loss") is not None]
    loss_curve([line["step"] for line in lines], [line["loss"] for line in lines],
               [line["step"] for line in held_out], [line["val_loss"] for line in held_out],
               ylabel="weighted x0 error").savefig(folder.media / "loss.png")
