"""Files of the small networks that look at video (features, walker)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dforce.train.auxiliary import Net


def motion_layers(shape: tuple[int, int, int], channels: int, *, what: str) -> list[nn.Module]:
    """Layers from two frames and their difference, [N, 3 C, H, W], to [N, 64]. ValueError for sides not in fours."""
    c, h, w = shape
    if h % 4 or w % 4:
        raise ValueError(f"the {what} halves frames twice: height and width must be multiples of 4, got {h} x {w}")
    return [nn.Conv2d(3 * c, channels, 5, 1, 2), nn.SiLU(), nn.Conv2d(channels, channels, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(channels, 2 * channels, 4, 2, 1), nn.SiLU(), nn.Flatten(),
            nn.Linear(2 * channels * (h // 4) * (w // 4), 64)]


def save_net(net: nn.Module, file: str | Path, *, key: str, about: dict[str, Any]) -> Path:
    """One safetensors file with the weights, and under `key` the arguments that the network is made with."""
    file = Path(file)
    partial = file.with_name(file.name + ".part")
    save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, partial,
              metadata={key: json.dumps(about)})
    os.replace(partial, file)
    return file


def load_net(file: str | Path, make: Callable[..., Net], *, key: str, what: str, missing: str) -> Net:
    """The frozen network that `save_net` wrote, by make(shape, **others); FileNotFoundError, or ValueError."""
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(missing.format(file=repr(str(file))))
    try:
        with safe_open(file, "pt") as content:
            about = json.loads((content.metadata() or {})[key])
            weights = {name: content.get_tensor(name) for name in content.keys()}
        net = make(tuple(about.pop("shape")), **about)
        net.load_state_dict(weights)
    except (SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} holds no {what} that dforce wrote: {error}") from error
    return net.eval().requires_grad_(False)
