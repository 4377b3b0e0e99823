"""The draws of a tree beside the row they belong to: what a draw keeps of it is computed once, for all of them.

Up to its split a draw shows a denoiser what the row itself shows it, so a causal one has the same states and estimates
there. A draw therefore enters where it parts from the row, with the state that the row has there, and row and draws go
on side by side. With stratified splits half of the draws' tokens are left, and one walk through the tokens less.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dforce.denoiser import Cond, Denoiser, cut, fork_cond
from dforce.tree import State, map_state

GRAIN = 8  # draws enter at multiples of so many tokens: shorter stretches cost more calls than they save work


class SharedDraws:
    """A denoiser of 1 + n sequences for each of B: the row, and n draws that keep its tokens up to a split.

    split: [n, B], the last token that each draw keeps, not falling from draw to draw. x, level: [(1 + n) B, T, ...],
    the row first; state, cond: of the row, B each. It is called with the same row every time: only draws may move, and
    only tokens behind their split. So after the first call the row is not evaluated again.
    """

    def __init__(self, denoiser: Denoiser, split: Tensor):
        self.denoiser, self.batch = denoiser, split.shape[1]
        self.enters = [first - first % GRAIN for first in split.amin(1).add(1).tolist()]
        self.row: Tensor | None = None  # its estimates [B, T, *E]
        self.after: State = None        # its state behind the last token
        self.states: list[State] = []  # of the row, where each draw enters

    def __call__(self, x: Tensor, level: Tensor, state: State, cond: Cond | None = None) -> tuple[Tensor, State]:
        """x0_hat [(1 + n) B, T, *E], and the state behind the row."""
        batch, time, row = self.batch, x.shape[1], self.row
        ahead = int(row is None)
        ends: list[tuple[int, Tensor]] = []
        carry, inside = state, 0
        for a, b in pairwise(sorted({0 if ahead else min(self.enters[0], time), *self.enters, time})):
            draws = sum(first <= a for first in self.enters)
            if ahead:
                self.states += [_first(carry, batch)] * (draws - inside)
            carry = _joined(([carry] if ahead or inside else []) + self.states[inside:draws])
            inside, rows = draws, slice(0 if ahead else batch, (1 + draws) * batch)
            x0, carry = self.denoiser(x[rows, a:b], level[rows, a:b], carry,
                                      fork_cond(cut(cond, slice(a, b)), ahead + draws))
            ends.append((draws, x0))
        if row is None:
            row = self.row = torch.cat([x0[:batch] for _, x0 in ends], 1)
            self.after = _first(carry, batch)
            ends = [(draws, x0[batch:]) for draws, x0 in ends]
        grown = [torch.cat([row[:, :first], *(x0[draw * batch:(draw + 1) * batch] for draws, x0 in ends
                                                   if draw < draws)], 1) for draw, first in enumerate(self.enters)]
        return torch.cat([row, *grown]), self.after


def _first(state: State, rows: int) -> State:
    return map_state(lambda leaf: leaf[:rows], state)


def _joined(states: list[State]) -> State:
    return states[0] if len(states) == 1 else map_state(lambda *leaf: torch.cat(leaf), *states)
