"""A video model that fits into a test: an untrained network, saved as `dforce train video` saves one."""

from __future__ import annotations

from pathlib import Path

import torch

from dforce.train.checkpoint import build_denoiser, save
from dforce.train.state import TrainingState


def save_model(folder: Path, *, shape=(1, 16, 16), stack: int = 1, actions: int = 0, data: str = "balls",
               width: int = 24, window: int = 8, seed: int = 0) -> Path:
    """A checkpoint of a RecurrentNet over frames `shape`; actions: numbers a frame."""
    config = {"net": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": width},
              "schedule": {"_target_": "dforce.core.schedule.cosine", "levels": 100}, "predict": "v", "data": data,
              "frames": window}
    layout = {"event_shape": [stack * shape[0], *shape[1:]], "stack": stack,
              "token": {"action": stack * actions} if actions else {}}
    torch.manual_seed(seed)
    denoiser = build_denoiser(config, layout)
    weights = {f"denoiser.{name}": value for name, value in denoiser.state_dict().items()}
    return save(folder, TrainingState(0, weights, {}, {}, {}), config=config, layout=layout)
