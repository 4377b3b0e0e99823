"""Training on trajectories: a data set of vector observations and actions to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dforce.config import Node
from dforce.data import Windows, load_episodes
from dforce.runs.folder import RunFolder
from dforce.runs.training_run import FEW, Prepared, has_checkpoint
from dforce.train.checkpoint import build_denoiser, load, load_state
from dforce.train.state import TrainingState


@dataclass(frozen=True)
class TrajectoryTraining:
    """A training of `dforce train`. The keys are explained in configs/verbs/train/train.yaml."""

    model: Node  # nodes `net` and `schedule`, and `predict`
    data: str
    horizon: int
    stack: int
    batch: int
    held_out: float
    carry: bool
    objective: Callable[..., Any]  # (denoiser, schedule) -> objective
    fit: partial[Any]  # `dforce.fit`, waiting for objective and data
    seed: int
    save_every: int
    keep: int
    cut_at: list[str] | None = None
    fast_dev_run: bool = False
    resume: str | None = None  # run folder or checkpoint to go on from
    trust: str | None = None

    def prepare(self) -> Prepared:
        """Data, model and training loop, or ValueError."""
        windows, held_out = self._windows()
        lo, hi = windows.layout["observation"]
        layout = {**windows.layout, "event_shape": [*windows.event_shape], "static": {"start": hi - lo}}
        torch.manual_seed(self.seed)
        denoiser = build_denoiser(self.model, layout, trust=self.trust)
        objective = self.objective(denoiser, denoiser.schedule, **({"carry": True} if self.carry else {}))
        state = self._state(windows)
        options = FEW if self.fast_dev_run else {}
        logs = self.fit(objective, windows.batch_at, seed=self.seed, resume=state, shards=windows.virtual_shards,
                        validate=held_out and held_out.batch_at, **options)
        return Prepared(logs, {"layout": layout, "normalizer": windows.normalizer}, state.step if state else 0,
                        options.get("steps", self.fit.keywords["steps"]))

    def finish(self, prepared: Prepared, folder: RunFolder, newest: Path) -> None:
        """Nothing beside the checkpoints."""

    def _windows(self) -> tuple[Windows, Windows | None]:
        episodes = load_episodes(self.data, cut_at=self.cut_at)
        shape: dict[str, Any] = {"horizon": self.horizon, "stack": self.stack, "batch": self.batch, "seed": self.seed,
                                 "held_out": self.held_out, "sequential": self.carry}
        windows = Windows(episodes, **shape)
        if not self.held_out:
            return windows, None
        return windows, Windows(episodes, split="val", normalizer=windows.normalizer, **shape)

    def _state(self, windows: Windows) -> TrainingState | None:
        """Where the run stopped; None for a new run, and for one that was stopped before its first checkpoint."""
        if not self.resume or not has_checkpoint(Path(self.resume)):
            return None
        before, now = load(self.resume, trust=self.trust).normalizer, windows.normalizer
        if before is None or not (torch.equal(before.mean, now.mean) and torch.equal(before.std, now.std)):
            raise ValueError(f"the data {self.data} are not those that {self.resume} was trained on (their means or "
                             "deviations differ): bring the old ones back, or start a new run")
        return load_state(self.resume)
