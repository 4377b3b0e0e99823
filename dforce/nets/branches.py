"""A GRU over sequences that branch off one another at different tokens, evaluated side by side.

The draws of tree guidance keep their row up to a split. Their tokens are packed without gaps: layers without memory
run once over all of them, and a step of the recurrence takes all sequences that have begun.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Lanes(NamedTuple):
    """How packed tokens (cells), sequence after sequence, are put in the order token after token."""

    sizes: list[int]             # number of sequences at each token, from the first token that has one
    entering: dict[int, Tensor]  # token -> numbers of the sequences that those beginning there continue
    order: Tensor                # [N] the cells, token after token
    place: Tensor                # [N] the place of each cell in that order
    behind: Tensor               # [N] in that order: the place of the sequence's next cell, or one behind its last
    first: Tensor                # [S] the first cell of each sequence


def lanes(begins: list[int], time: int, parents: list[int]) -> Lanes:
    """The lanes of S sequences from tokens `begins`, in rising order, to `time`; the last continue `parents`."""
    sizes = [bisect_right(begins, t) for t in range(begins[0], time)]
    given = len(begins) - len(parents)
    entering = {t: torch.tensor(parents[a - given:b - given]) for t, (a, b) in enumerate(pairwise(sizes), 1)
                if given <= a < b}
    lengths = time - torch.tensor(begins, dtype=torch.long)
    first = lengths.cumsum(0) - lengths
    token = torch.arange(sum(sizes)) - (first + lengths).repeat_interleave(lengths)
    order = token.argsort(stable=True)
    count = torch.tensor(sizes).repeat_interleave(torch.tensor(sizes))
    place = torch.empty_like(order).index_copy_(0, order, each := torch.arange(len(order)))
    return Lanes(sizes, entering, order, place, each + count, first)


def unroll_branches(core: nn.GRU, code: Tensor, z: Tensor, lanes: Lanes) -> tuple[list[Tensor], list[Tensor]]:
    """Cells code [N, width], z [layers, given, width] -> latents [N, width] before and after each, layer by layer."""
    before, after = [], []
    for weights, first in zip(core.all_weights, z.unbind(0), strict=True):
        earlier, code = _Layer.apply(code, first, *weights, lanes)
        before.append(earlier)
        after.append(code)
    return before, after


def _blocks(latents: Tensor, sizes: list[int]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Views of latents [N + S, width] at each token and behind the last: all, continued ones, beginning ones."""
    sizes = [*sizes, sizes[-1]]
    parts = latents.split_with_sizes([part for a, b in pairwise([0, *sizes]) for part in (a, b - a)])
    return latents.split_with_sizes(sizes), parts[::2], parts[1::2]


class _Layer(torch.autograd.Function):
    """One layer, in the notation of `dforce.nets.gru`: five operations a token forward, three backward."""

    @staticmethod
    def forward(ctx: Any, code: Tensor, first: Tensor, w: Tensor, v: Tensor, b: Tensor, c: Tensor,
                lanes: Lanes) -> tuple[Tensor, Tensor]:
        width, sizes = first.shape[1], lanes.sizes
        a = linear(code.index_select(0, lanes.order), w, b)
        n = a[:, 2 * width:].clone()
        a[:, :2 * width] += c[:2 * width]
        a[:, 2 * width:] = c[2 * width:]
        latents = first.new_empty(len(a) + sizes[-1], width)
        latents[lanes.place[lanes.first[:len(first)]]] = first
        at, on, new = _blocks(latents, sizes)
        views = (part.split_with_sizes(sizes) for part in (a, a[:, :2 * width], *a.split(width, 1), n))
        v = v.t()
        for t, (gates, ru, r, u, g_n, a_n) in enumerate(zip(*views, strict=True)):
            if t in lanes.entering:
                new[t].copy_(on[t].index_select(0, lanes.entering[t]))
            gates.addmm_(at[t], v)
            ru.sigmoid_()
            a_n.addcmul_(r, g_n).tanh_()
            torch.lerp(a_n, at[t], u, out=on[t + 1])
        ctx.lanes = lanes
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(first, latents, a, n, w, v.t())
        return latents.index_select(0, lanes.place), latents.index_select(0, lanes.behind[lanes.place])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        lanes: Lanes = ctx.lanes
        first, latents, gates, n, w, v = ctx.saved_tensors
        total = torch.zeros_like(latents)  # the gradient of each latent
        before, after = gradients
        if before is not None:
            torch.index_select(before, 0, lanes.order, out=total[:len(n)])
        if after is not None:
            total.index_add_(0, lanes.behind, after.index_select(0, lanes.order))
        by = _walk_back(latents, gates, n, v, total, lanes)
        code = (by @ w).index_select(0, lanes.place) if ctx.needs_input_grad[0] else None
        return code, total[lanes.place[lanes.first[:len(first)]]], None, None, None, None, None


def _walk_back(latents: Tensor, gates: Tensor, n: Tensor, v: Tensor, total: Tensor, lanes: Lanes) -> Tensor:
    """Adds to `total` the gradient of each latent from later ones; returns that in a = W x + b, [N, 3 width]."""
    cells, width = n.shape
    r, u, g_n = gates.split(width, 1)
    by_n = (1 - n * n).mul_(1 - u)                                  # d h' / d a_n
    by = n.new_empty(cells, 3, width)                               # d h' / d g
    torch.mul(by_n, r, out=by[:, 2])
    torch.mul(by[:, 2], g_n, out=by[:, 0]).mul_(1 - r)
    torch.sub(latents[:cells], n, out=by[:, 1]).mul_(u).mul_(1 - u)
    at, on, new = _blocks(total, lanes.sizes)
    flat = by.view(cells, 3 * width)
    steps = list(zip(*(part.split_with_sizes(lanes.sizes) for part in (by, flat, u)), strict=True))
    for t in range(len(steps) - 1, -1, -1):
        each, gates_, kept = steps[t]
        each.mul_(on[t + 1][:, None])
        at[t].addcmul_(on[t + 1], kept).addmm_(gates_, v)
        if t in lanes.entering:
            on[t].index_add_(0, lanes.entering[t], new[t])
    torch.mul(by_n, total.index_select(0, lanes.behind), out=by[:, 2])  # d a, as d g but for this gate
    return flat
