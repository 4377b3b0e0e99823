"""Training of auxiliary networks: small ones that judge, measure or act beside a model, trained in a minute."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
