"""The draws of a tree beside the row they belong to: what a draw keeps of it is computed once, for all of them.

Up to its split a draw shows a denoiser what the row itself shows it, so a causal one has the same states and estimates
there. A draw therefore enters where it parts from the row, with the state that the row has there, and row and draws go
on side by side. With stratified splits half of the draws' tokens are left, and one walk through the tokens less.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser, fork_cond, slice_cond
from dforce.core.tree import State, fork, map_state, select

GRAIN = 8  # draws enter at multiples of so many tokens: shorter stretches cost more calls than they save work


class SharedDraws:
    """A denoiser of the tokens that draws do not keep, given the row that they part from.

    split: [n, B], the last token that each draw keeps, not falling from draw to draw; x [B, T, *E], level [B, T],
    state, cond: of the row. Those tokens are packed: token `token` [N] of draw `draw` [N], which counts the n B draws,
    the plan the fast dimension; `plan` [N] is that one. A call answers for them, [N, 1, *E], and for the row too
    the first time: its estimates [B, T, *E] are then `x0`, its state behind the last token is `after`.
    """

    def __init__(self, denoiser: Denoiser, split: Tensor, x: Tensor, level: Tensor, state: State,
                 cond: Cond | None = None):
        self.denoiser, self.split, self.x, self.level, self.cond = denoiser, split, x, level, cond
        begins, order = split.add(1).flatten().sort(stable=True)
        lengths = x.shape[1] - begins
        self.draw = order.repeat_interleave(lengths)
        first = (lengths.cumsum(0) - lengths - begins).repeat_interleave(lengths)
        self.token = torch.arange(len(first), device=first.device) - first
        self.plan = self.draw % len(x)
        self.x0: Tensor | None = None
        self.after: State = None
        if denoiser.may_branch(x):
            self.begins = [first for first in begins.tolist() if first < x.shape[1]]
            self.parents = (order[:len(self.begins)] % len(x)).tolist()
            self.state, self.answer = state, self._branched
        else:
            segments = _Segments(denoiser, split, state, cond)
            self.answer = partial(self._by_segments, segments)

    def __call__(self, x: Tensor, level: Tensor, state: State = None, cond: Cond | None = None) -> tuple[Tensor, State]:
        """x0_hat of the draws' own tokens x [N, 1, *E] at `level` [N, 1]; state and conditioning are the row's."""
        return self.answer(x, level), None

    def sequences(self, x0: Tensor) -> Tensor:
        """Row and draws with the estimates x0 [N, 1, *E] of their own tokens: [(1 + n) B, T, *E], the row first."""
        assert self.x0 is not None, "the row is evaluated with the first estimates"
        return torch.cat([self.x0, self._whole(self.x0, x0)])

    def _whole(self, row: Tensor, own: Tensor) -> Tensor:
        """row [B, T, ...] for every draw, but `own` [N, 1, ...] where the draw does not keep it."""
        whole, time = fork(row, len(self.split)), row.shape[1]
        return whole.flatten(0, 1).index_copy(0, self.draw * time + self.token, own[:, 0]).view(whole.shape)

    def _branched(self, x: Tensor, level: Tensor) -> Tensor:
        """By a denoiser that takes sequences that begin anywhere."""
        (batch, time), draws = self.x.shape[:2], self._cond(self.plan, self.token)
        if self.x0 is not None:
            return self.denoiser.branched(x, level, self.state, self.begins, time, [], draws)[0] if len(x) else x
        plan = torch.arange(batch, device=x.device).repeat_interleave(time)
        token = torch.arange(time, device=x.device).repeat(batch)
        found, self.state, self.after = self.denoiser.branched(
            torch.cat([self.x.flatten(0, 1)[:, None], x]), torch.cat([self.level.reshape(-1, 1), level]), self.state,
            [0] * batch + self.begins, time, self.parents,
            self._cond(torch.cat([plan, self.plan]), torch.cat([token, self.token])))
        self.x0 = found[:batch * time].view(self.x.shape)
        return found[batch * time:]

    def _cond(self, plan: Tensor, token: Tensor) -> Cond | None:
        """Conditioning of single tokens, as of sequences of one."""
        return self.cond and {
            **self.cond, "static": select(self.cond.get("static") or {}, plan),
            "token": {name: value[plan, token][:, None] for name, value in (self.cond.get("token") or {}).items()}}

    def _by_segments(self, segments: _Segments, x: Tensor, level: Tensor) -> Tensor:
        """By any causal denoiser."""
        found = segments(torch.cat([self.x, self._whole(self.x, x)]),
                         torch.cat([self.level, self._whole(self.level, level)]))
        self.x0, self.after = found[:len(self.x)], segments.after
        return found[len(self.x):].flatten(0, 1)[self.draw * self.x.shape[1] + self.token][:, None]


class _Segments:
    """1 + n whole sequences for each of B, the row and its draws, from the one token where a draw enters to the next.

    x, level: [(1 + n) B, T, ...], the row first; state, cond: of the row, B each. It is called with the same row every
    time: only draws may move, and only tokens behind their split. So after the first call the row is not evaluated
    again.
    """

    def __init__(self, denoiser: Denoiser, split: Tensor, state: State, cond: Cond | None):
        self.denoiser, self.batch, self.state, self.cond = denoiser, split.shape[1], state, cond
        self.enters = [first - first % GRAIN for first in split.amin(1).add(1).tolist()]
        self.row: Tensor | None = None  # its estimates [B, T, *E]
        self.after: State = None        # its state behind the last token
        self.states: list[State] = []  # of the row, where each draw enters

    def __call__(self, x: Tensor, level: Tensor) -> Tensor:
        """x0_hat [(1 + n) B, T, *E]."""
        batch, time, row = self.batch, x.shape[1], self.row
        ahead = int(row is None)
        ends: list[tuple[int, Tensor]] = []
        carry, inside = self.state, 0
        for a, b in pairwise(sorted({0 if ahead else min(self.enters[0], time), *self.enters, time})):
            draws = sum(first <= a for first in self.enters)
            if ahead:
                self.states += [_first(carry, batch)] * (draws - inside)
            carry = _joined(([carry] if ahead or inside else []) + self.states[inside:draws])
            inside, rows = draws, slice(0 if ahead else batch, (1 + draws) * batch)
            x0, carry = self.denoiser(x[rows, a:b], level[rows, a:b], carry,
                                      fork_cond(slice_cond(self.cond, slice(a, b)), ahead + draws))
            ends.append((draws, x0))
        if row is None:
            row = self.row = torch.cat([x0[:batch] for _, x0 in ends], 1)
            self.after = _first(carry, batch)
            ends = [(draws, x0[batch:]) for draws, x0 in ends]
        grown = [torch.cat([row[:, :first], *(x0[draw * batch:(draw + 1) * batch] for draws, x0 in ends
                                                   if draw < draws)], 1) for draw, first in enumerate(self.enters)]
        return torch.cat([row, *grown])


def _first(state: State, rows: int) -> State:
    return map_state(lambda leaf: leaf[:rows], state)


def _joined(states: list[State]) -> State:
    return states[0] if len(states) == 1 else map_state(lambda *leaf: torch.cat(leaf), *states)
