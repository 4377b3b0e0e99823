"""Which device and number format the networks run in: asked of the hardware, not assumed."""

import time
from functools import cache
from typing import Literal, NamedTuple

import torch

GAIN = 1.25      # bfloat16 costs three digits: it must be at least this much faster to be chosen unasked
SIDE = 512       # of the square matrices timed: large enough to be bound by arithmetic, about a millisecond each
SECONDS = 0.025  # spent on timing either format


def device_of(name: torch.device | str | None) -> torch.device:
    """The CPU or a CUDA GPU by name; None is the GPU if there is one. ValueError for a device that is not there."""
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")  # no device at all
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:<number>, or null for the GPU if there is one; got {name}")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise ValueError(f"there is no {device} here: PyTorch {torch.__version__} sees {count or 'no'} "
                         f"GPU{'s' if count > 1 else ''}; give device=cpu, or none for the GPU if there is one")
    return device


class Precision(NamedTuple):
    """The number format of the networks (autocast); losses and transition maths stay float32."""

    name: Literal["fp32", "bf16"]
    reason: str  # why it was chosen

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context to run a network in."""
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.name == "bf16")


def choose(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Precision:
    """The given precision; for "auto" bf16 where the device multiplies matrices faster in it than in float32."""
    if precision in ("fp32", "bf16"):
        return Precision(precision, "asked for")
    if precision != "auto":
        raise ValueError(f"precision must be 'auto', 'fp32' or 'bf16', got {precision!r}")
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return Precision("bf16" if native else "fp32", f"{torch.cuda.get_device_name(device)} "
                         f"{'has' if native else 'has no'} native bfloat16")
    if device.type == "cpu":
        return _choose_cpu()
    return Precision("fp32", f"bfloat16 on {device.type} was not examined")


@cache
def _choose_cpu() -> Precision:
    capability = torch.backends.cpu.get_cpu_capability()
    units = [name for name, present in (("AMX", torch.cpu._is_amx_tile_supported()),
                                      ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported())) if present]
    if not units and capability not in ("SVE256", "SVE128"):  # Arm tells of bfloat16 by no flag: only the clock does
        return Precision("fp32", f"{capability} without bfloat16 units")
    gain = _gemm_seconds(torch.float32) / _gemm_seconds(torch.bfloat16)
    return Precision("bf16" if gain >= GAIN else "fp32", f"{capability} with {' and '.join(units) or 'no flag'}: "
                     f"bfloat16 matrix products {gain:.1f}x as fast")


def _gemm_seconds(dtype: torch.dtype) -> float:
    """Seconds of the fastest SIDE^3 product among those that fit into SECONDS; a busy machine slows the others."""
    a, b = (torch.ones(SIDE, SIDE, dtype=dtype) for _ in range(2))
    a @ b  # the first call also prepares the kernel
    best, end = float("inf"), time.perf_counter() + SECONDS
    while (begin := time.perf_counter()) < end:
        a @ b
        best = min(best, time.perf_counter() - begin)
    return best
