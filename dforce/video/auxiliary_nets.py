"""Files of the small networks that look at video (features, walker)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dforce.train.auxiliary import Net


def save_net(net: nn.Module, file: str | Path, *, key: str, about: dict[str, Any]) -> Path:
    """One safetensors file with the weights, and under `key` the arguments that the network is made with."""
    file = Path(file)
    partial = file.with_name(file.name + ".part")
    save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, partial,
              metadata={key: json.dumps(about)})
    os.replace(partial, file)
    return file


def load_net(file: str | Path, make: Callable[..., Net], *, key: str, what: str, missing: str) -> Net:
    """The network that `save_net` wrote, frozen.

    make: (shape, **the other arguments) -> network. key: as it was saved.
    Raises FileNotFoundError with the message `missing` ({file} stands for the file), and ValueError that says
    that another file holds no `what`.
    """
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
