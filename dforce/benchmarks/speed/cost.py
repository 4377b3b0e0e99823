"""What a computation costs whoever runs it: arithmetic, kernel launches, memory; and the machine's own limit."""

import time
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dforce.benchmarks.speed.harness import clock

aten = torch.ops.aten

# Reach the dispatcher, but only name, make or look at memory: no device ever works for them.
NO_KERNEL = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.unsafe_split,
             aten._unsafe_view, aten.transpose_, aten._local_scalar_dense, aten.is_same_size}


def _rnn_flops(x: Any, weights: list[Any], *args: Any, **kwargs: Any) -> int:
    """Operations of cuDNN's recurrence, which torch's counter does not know: two a weight and token. Gets shapes."""
    *tokens, _ = x
    return 2 * int(torch.Size(tokens).numel()) * sum(int(torch.Size(w).numel()) for w in weights if len(w) == 2)


def _rnn_backward_flops(x: Any, weights: list[Any], *args: Any, **kwargs: Any) -> int:
    return 2 * _rnn_flops(x, weights)


CUDNN = {aten._cudnn_rnn: _rnn_flops, aten._cudnn_rnn_backward: _rnn_backward_flops}


def flops(run: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products and convolutions in one call (a multiply-add is two)."""
    with FlopCounterMode(display=False, custom_mapping=CUDNN) as counter:
        run()
    return counter.get_total_flops()


class _Watch(TorchDispatchMode):
    """Sees every operation below autograd. count: of kernels; live, peak: bytes that they allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.count += not (func.is_view or func.overloadpacket in NO_KERNEL)
        self._see((args, kwargs), new=False)
        out = func(*args, **kwargs)
        self._see(out, new=True)
        return out

    def _see(self, tensors: Any, *, new: bool) -> None:
        for leaf in tree_leaves(tensors):
            if isinstance(leaf, Tensor) and (storage := leaf.untyped_storage())._cdata not in self._known:
                size = storage.nbytes() if new else 0  # what arrives as an argument was there before
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._freed, storage._cdata, size)
                self.live += size
                self.peak = max(self.peak, self.live)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def launches(run: Callable[[], Any]) -> int:
    """Operations in one call, backward included, that start a kernel: what a GPU pays for. Counted below autograd."""
    with _Watch() as watch:
        run()
    return watch.count


def peak_memory(run: Callable[[], Any]) -> float:
    """Most bytes, in MB (2^20), of tensors that one call makes, held at a time; without a kernel's scratch."""
    with _Watch() as watch:
        run()
    return watch.peak / 2**20


@cache
def gemm_peak(dtype: torch.dtype, device: torch.device, *, sides: tuple[int, ...], seconds: float = 0.5) -> float:
    """FLOP/s of square matrix products in `dtype`, the best of those that fit into `seconds` for each side."""
    best = 0.0
    for side in sides:
        a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        a @ b
        end = time.perf_counter() + seconds
        while True:
            best = max(best, 2 * side**3 / clock(partial(torch.matmul, a, b)))
            if time.perf_counter() > end:
                break
    return best
