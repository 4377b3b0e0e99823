"""Processes that train together: torch.distributed called where it is needed, and nothing of our own beyond that."""

import atexit
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dforce.train.interrupts import handled, received
from dforce.train.precision import device_of


class Ranks(NamedTuple):
    """This process is number `rank` of `world`, and computes on `device`."""

    rank: int
    world: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """Wraps a module so that its gradients are averaged over all processes; alone, the module itself."""
        if self.world == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, the same on each."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def deal(self, count: int, what: str) -> tuple[int, int]:
        """The part [lo, hi) of `count` things that belongs to this process. ValueError unless all get equally many."""
        if count % self.world:
            raise ValueError(f"{what} must be a multiple of the {self.world} processes, got {count}")
        share = count // self.world
        return self.rank * share, (self.rank + 1) * share


def join(device: torch.device | str | None = None) -> Ranks:
    """This process among those of torchrun, or alone; device None: the accelerator of LOCAL_RANK, else the CPU."""
    if device is None and torch.cuda.is_available():
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    device = device_of(device)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    if not dist.is_available():
        return Ranks(0, 1, device)
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    if not dist.is_initialized():
        return Ranks(0, 1, device)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


@contextmanager
def stop_requested(*signals: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM, SIGINT and SIGUSR1 only raise a flag (a second one kills): training stops between steps.

    Yields `stop() -> bool`, to be asked after every step: it is true on all processes once one of them was signalled.
    """
    signals = signals or (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    flag, owner = threading.Event(), os.getpid()
    if received() is not None:  # it was swallowed on the way here
        flag.set()

    def handle(number: int, _: Any) -> None:
        if flag.is_set() or os.getpid() != owner:  # a data worker forked inside inherits this handler: it just ends
            signal.signal(number, signal.SIG_DFL)  # the default action of all of these is to end the process
            os.kill(os.getpid(), number)
        flag.set()

    def stop() -> bool:
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return flag.is_set()
        raised = torch.tensor(float(flag.is_set()), device="cuda" if dist.get_backend() == "nccl" else "cpu")
        dist.all_reduce(raised)
        return bool(raised > 0)

    with handled(handle, *signals):
        yield stop
