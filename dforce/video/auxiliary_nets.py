"""The small networks that look at video (features, probe, walker): how they are begun, trained and kept.

They are trained in a minute on real clips, the same for the same clips, seed and machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


def begun(make: Callable[[], Net], seed: int) -> Net:
    """make(), its weights drawn by `seed`; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def descend(net: Net, loss: Callable[[int], Tensor], *, steps: int, lr: float, weight_decay: float) -> Net:
    """The network after AdamW on loss(0), loss(1), ... under one cycle of the learning rate; frozen, to be asked."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss(step).backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def save_net(net: nn.Module, file: str | Path, *, key: str, about: dict[str, Any]) -> Path:
    """One safetensors file with the weights, and under `key` the arguments that the network is made with."""
    file = Path(file)
    partial = file.with_name(file.name + ".part")
    save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, partial,
              metadata={key: json.dumps(about)})
    os.replace(partial, file)
    return file


def load_net(file: str | Path, make: Callable[..., Net], *, key: str, what: str, missing: str) -> Net:
    """What `save_net` wrote, by make(shape, **the other arguments); frozen. Raises FileNotFoundError that says
    `missing`, with {file} in it, or ValueError for another file, one that holds no `what`."""
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
