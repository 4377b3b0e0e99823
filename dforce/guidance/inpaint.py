"""Sequences that are known in part: known entries of tokens, and tokens behind that stay noise."""

from typing import Literal

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.schedule import Schedule
from dforce.core.tree import State, fork
from dforce.guidance.wrapper import NonCausalWrapper


class inpaint(NonCausalWrapper):
    """Known entries that are no whole token (Diffuser's start and goal): x0_hat is `known` where `mask`.

    The transition then keeps them on the noised path of the known value. They go by position, so finished tokens stay.
    known: [B, T, *E] or [T, *E], in the network's units. mask: bool, the same shape. show: "clean" puts the known
    values into the network's input, as Diffuser trains its network (Janner et al. 2022, section 3.2), or "noised".
    """

    def __init__(self, denoiser: Denoiser, known: Tensor, mask: Tensor, *, show: Literal["noised", "clean"] = "noised"):
        super().__init__(denoiser)
        if known.shape != mask.shape or mask.dtype != torch.bool:
            raise ValueError(f"known and a boolean mask must have one shape, got {[*known.shape]} and {[*mask.shape]} "
                             f"({mask.dtype})")
        if show not in ("noised", "clean"):
            raise ValueError(f"show must be 'noised' or 'clean', got {show!r}")
        self.known, self.mask, self.show = known, mask, show

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        known, mask = self.known, self.mask
        if known.shape[1 - x.ndim] != x.shape[1]:
            raise ValueError(f"inpaint() knows entries of {known.shape[1 - x.ndim]} tokens and is shown {x.shape[1]}; "
                             "around a padded sequence write inpaint(padded(...))")
        if known.ndim == x.ndim:  # n draws of Monte Carlo guidance come as n B sequences, the draw the slow dimension
            known, mask = fork((known, mask), len(x) // len(known))
        shown = torch.where(mask, known, x) if self.show == "clean" else x
        x0, state = self.denoiser(shown, level, state, cond)
        return torch.where(mask, known, x0), state


class padded(NonCausalWrapper):
    """Tokens of pure noise, tail [B, P, *E], behind the sequence, never denoised: a shorter one at full length."""

    def __init__(self, denoiser: Denoiser, schedule: Schedule, tail: Tensor):
        super().__init__(denoiser)
        if denoiser.causal:
            raise ValueError("padded() would change nothing for a causal denoiser, to which later tokens are unknown; "
                             "sample the shorter sequence as it is")
        self.levels, self.tail = schedule.levels, tail

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        time, tail = x.shape[1], fork(self.tail, len(x) // len(self.tail))  # draws of Monte Carlo guidance: n B rows
        noisy = torch.full((len(x), tail.shape[1]), self.levels, dtype=level.dtype, device=level.device)
        x0, state = self.denoiser(torch.cat([x, tail], 1), torch.cat([level, noisy], 1), state, cond)
        return x0[:, :time], state
