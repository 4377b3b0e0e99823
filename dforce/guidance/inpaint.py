"""Sequences of which something is given: known entries of tokens, and tokens behind that stay noise."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.schedule import Schedule
from dforce.core.tree import State, fork


class inpaint:
    """Known entries that are no whole token (Diffuser's start and goal): x0_hat is `known` where `mask`.

    known: [B, T, *E] or [T, *E] in the network's units; mask: bool, same shape. The transition then keeps those
    entries on the noised path of the known value, which is what a network trained on noised tokens expects. show =
    "clean" puts the known values themselves into the network's input, as Diffuser trains its network
    (Janner et al. 2022, section 3.2). Entries are found by position, so finished tokens stay in the sequence.
    """

    causal = recurrent = False

    def __init__(self, denoiser: Denoiser, known: Tensor, mask: Tensor, *, show: Literal["noised", "clean"] = "noised"):
        if known.shape != mask.shape or mask.dtype != torch.bool:
            raise ValueError(f"known and a boolean mask must have one shape, got {[*known.shape]} and {[*mask.shape]} "
                             f"({mask.dtype})")
        if show not in ("noised", "clean"):
            raise ValueError(f"show must be 'noised' or 'clean', got {show!r}")
        self.denoiser, self.known, self.mask, self.show = denoiser, known, mask, show
        self.global_x0, self.init_state = denoiser.global_x0, denoiser.init_state

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        raise ValueError("inpaint() finds entries by position in the sequence and cannot absorb finished tokens")

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        known, mask = self.known, self.mask
        if known.ndim == x.ndim:  # n draws of Monte Carlo guidance come as n B sequences, the draw the slow dimension
            known, mask = fork((known, mask), len(x) // len(known))
        shown = torch.where(mask, known, x) if self.show == "clean" else x
        x0, state = self.denoiser(shown, level, state, cond)
        return torch.where(mask, known, x0), state


class padded:
    """Tokens of pure noise behind the sequence, never denoised: a sequence of unknown length, of which only the
    beginning is wanted, shown to a network at the length that it was trained on.

    tail: [B, P, *E] standard normal. The result is that of P more columns in the matrix that stay at level K, with
    nothing computed about them and nothing to guide in them. ValueError for a causal denoiser, which never hears of
    what comes later: it makes a shorter sequence as it is.
    """

    causal = recurrent = False

    def __init__(self, denoiser: Denoiser, schedule: Schedule, tail: Tensor):
        if denoiser.causal:
            raise ValueError("padded() would change nothing for a causal denoiser, to which later tokens are unknown; "
                             "sample the shorter sequence as it is")
        self.denoiser, self.levels, self.tail = denoiser, schedule.levels, tail
        self.global_x0, self.init_state = denoiser.global_x0, denoiser.init_state

    def absorb(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> State:
        raise ValueError("padded() wraps a denoiser that is not causal, which cannot absorb finished tokens")

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        time, tail = x.shape[1], fork(self.tail, len(x) // len(self.tail))  # draws of Monte Carlo guidance: n B rows
        noisy = torch.full((len(x), tail.shape[1]), self.levels, dtype=level.dtype, device=level.device)
        x0, state = self.denoiser(torch.cat([x, tail], 1), torch.cat([level, noisy], 1), state, cond)
        return x0[:, :time], state
