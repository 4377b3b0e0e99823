"""What a computation costs whoever runs it: arithmetic, kernel launches, memory; and the machine's own limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten

# Reach the dispatcher, but only name, make or look at memory: no device ever works for them.
NO_KERNEL = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.new_empty_strided, aten.unsafe_split,
             aten._unsafe_view, aten.transpose_, aten._local_scalar_dense, aten.is_same_size}


def _rnn_flops(x: Any, weights: list[Any], *args: Any, **kwargs: Any) -> int:
    """Of cuDNN's recurrence, which torch's counter does not know: two for each weight and token. Gets shapes."""
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


class _Launches(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.overloadpacket in NO_KERNEL)
        return func(*args, **(kwargs or {}))


def launches(run: Callable[[], Any]) -> int:
    """Operations in one call, backward included, that start a kernel: what a GPU pays for, whatever their size.

    Counted below autograd, where composite functions have fallen into the kernels that they are made of (on a CPU
    also `nn.GRU`, which cuDNN runs as one).
    """
    with _Launches() as mode:
        run()
    return mode.count


def peak_memory(run: Callable[[], Any], device: torch.device) -> float:
    """Most memory held at a time by what one call allocates, in MB (2^20 bytes); what was there before not counted."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        run()
    events = trace.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += size
        peak = max(peak, live)
    return peak / 2**20


@cache
def gemm_peak(dtype: torch.dtype, device: torch.device, *, sides: tuple[int, ...] = (1024, 2048),
              seconds: float = 0.5) -> float:
    """FLOP/s of square matrix products in `dtype`, the best of those that fit into `seconds` for each side."""
    best = 0.0
    for side in sides:
        a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        a @ b
        end = time.perf_counter() + seconds
        while True:
            _finish(device)
            begin = time.perf_counter()
            a @ b
            _finish(device)
            now = time.perf_counter()
            best = max(best, 2 * side**3 / (now - begin))
            if now > end:
                break
    return best


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
