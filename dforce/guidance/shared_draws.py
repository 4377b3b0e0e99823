"""Draws of a tree beside the row that they branch off: the tokens that draws keep are computed once, for all of them.

A draw enters where it branches off, with the state of the row at that token, and row and draws go on side by side:
with stratified splits half of the draws' tokens remain, and one walk through the tokens is saved.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser, fork_cond, slice_cond
from dforce.core.tree import State, fork, map_state, select

GRAIN = 8  # tokens; draws enter at multiples of it, since shorter stretches cost more calls than they save work


class SharedDraws:
    """A denoiser of the tokens that draws do not keep, given the row that they branch off.

    split: [n, B], the last token that each draw keeps, not falling. x [B, T, *E], level [B, T], state, cond: of the
    row. The N tokens are packed. `token` [N]: the place of each in its sequence; `draw` [N]: its draw, of n B, the plan
    as the fast dimension; `plan` [N]. A call returns their estimates [N, 1, *E]; the first call also evaluates the row:
    `x0` [B, T, *E] are its estimates, `after` is its state behind the last token.
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
        """x0_hat of the packed tokens x [N, 1, *E] at `level` [N, 1]; state and conditioning are those of the row."""
        return self.answer(x, level), None

    def sequences(self, x0: Tensor) -> Tensor:
        """Row and draws as whole sequences, given the packed estimates x0 [N, 1, *E]: [(1 + n) B, T, *E], row first."""
        assert self.x0 is not None, "the row is evaluated with the first estimates"
        return torch.cat([self.x0, self._whole(self.x0, x0)])

    def _whole(self, row: Tensor, packed: Tensor) -> Tensor:
        """row [B, T, ...] for every draw, with `packed` [N, 1, ...] in place of the tokens that the draw redraws."""
        whole, time = fork(row, len(self.split)), row.shape[1]
        return whole.flatten(0, 1).index_copy(0, self.draw * time + self.token, packed[:, 0]).view(whole.shape)

    def _branched(self, x: Tensor, level: Tensor) -> Tensor:
        """The estimates by a denoiser that takes sequences that branch off one another."""
        (batch, time), draws = self.x.shape[:2], self._cond(self.plan, self.token)
        if self.x0 is not None:
            return self.denoiser.branched(x, level, self.state, self.begins, time, [], draws)[0] if len(x) else x
        plan = torch.arange(batch, device=x.device).repeat_interleave(time)
        token = torch.arange(time, device=x.device).repeat(batch)
        estimates, self.state, self.after = self.denoiser.branched(
            torch.cat([self.x.flatten(0, 1)[:, None], x]), torch.cat([self.level.reshape(-1, 1), level]), self.state,
            [0] * batch + self.begins, time, self.parents,
            self._cond(torch.cat([plan, self.plan]), torch.cat([token, self.token])))
        self.x0 = estimates[:batch * time].view(self.x.shape)
        return estimates[batch * time:]

    def _cond(self, plan: Tensor, token: Tensor) -> Cond | None:
        """Conditioning of single tokens, as of sequences of one."""
        return self.cond and {
            **self.cond, "static": select(self.cond.get("static") or {}, plan),
            "token": {name: value[plan, token][:, None] for name, value in (self.cond.get("token") or {}).items()}}

    def _by_segments(self, segments: "_Segments", x: Tensor, level: Tensor) -> Tensor:
        """The estimates by any causal denoiser."""
        estimates = segments(torch.cat([self.x, self._whole(self.x, x)]),
                             torch.cat([self.level, self._whole(self.level, level)]))
        self.x0, self.after = estimates[:len(self.x)], segments.after
        return estimates[len(self.x):].flatten(0, 1)[self.draw * self.x.shape[1] + self.token][:, None]


class _Segments:
    """Evaluates B rows and their n B draws in segments, from each token where a draw enters to the next.

    x, level: [(1 + n) B, T, ...], the rows first, which are evaluated once: draws may differ only behind their splits.
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
