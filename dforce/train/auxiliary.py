"""Small networks that judge, measure or act beside a model: their training, in a minute, and their files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dforce.core.files import replacing
from dforce.train.fit import Log, fit

Net = TypeVar("Net", bound=nn.Module)


def seeded(make: Callable[[], Net], seed: int) -> Net:
    """make(), its weights drawn by `seed`; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def train_auxiliary(net: Net, loss: Callable[[int], Tensor], *, steps: int, lr: float, weight_decay: float) -> Net:
    """The network, frozen, after AdamW on loss(0), loss(1), ... under one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss(step).backward()
        optimizer.step()
        schedule.step()
    return net.eval().requires_grad_(False)


def auxiliary_steps(objective: nn.Module, batch_at: Callable[[int], Any], *, steps: int, lr: float, warmup: int,
                    seed: int, weight_decay: float = 1e-2, ema: float | None = None,
                    device: torch.device | str | None = None) -> Iterator[Log]:
    """The steps of `dforce.fit` in float32, for objectives that draw at random or are trained by several processes."""
    return fit(objective, batch_at, lr=lr, steps=steps, warmup=min(warmup, steps), weight_decay=weight_decay, ema=ema,
               precision="fp32", seed=seed, device=device)


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
    with replacing(Path(file)) as partial:
        save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, partial,
                  metadata={key: json.dumps(about)})
    return Path(file)


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
    except (SafetensorError, KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{file} holds no {what} that dforce wrote: {error}") from error
    return net.eval().requires_grad_(False)
