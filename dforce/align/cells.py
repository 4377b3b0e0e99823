"""Losses of traces a few cells at a time: memory of a part, loss and gradient of the whole.

A cell is a step of a run. A loss of a trace is a mean over cells, so its gradient is a weighted sum of those of its
parts. The graph of a part is gone before the next is built, and nothing is computed twice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dforce.align.losses import Reduce
from dforce.align.trace import Trace
from dforce.core.tree import select

Part = Callable[[Tensor, Tensor], tuple[Tensor, Sequence[Tensor]]]


def cells_of(trace: Trace, run: Tensor, step: Tensor) -> Trace:
    """The cells (run, step), [n] both, as n runs of one step."""
    x, level = (torch.stack([leaf[run, step], leaf[run, step + 1]], 1) for leaf in (trace.x, trace.level))
    std, log_prob, dims = (leaf[run, step][:, None] for leaf in (trace.std, trace.log_prob, trace.dims))
    return Trace(x, level, std, log_prob, dims, *select(trace[5:], run))


def in_parts(module: nn.Module, steps: Tensor, rows: int, part: Part, reduce: Reduce) -> tuple[Tensor, list[Tensor]]:
    """The mean loss over the cells `steps` [B, N], with its gradient by the parameters of `module`, and other tensors.

    part: (run, step) [n] -> the mean loss over n <= rows cells, and tensors [n, 1, T], the first of which says how many
    dimensions of a token move. Those of all cells are returned as [B, N, T].
    """
    run = torch.arange(len(steps), device=steps.device)[:, None].expand_as(steps)
    size = rows - rows % len(steps) if rows > len(steps) else rows  # the step is the slow dimension, as in `replay`
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    total, others = torch.zeros((), dtype=torch.float64, device=steps.device), []
    count = torch.zeros((), dtype=torch.long, device=steps.device)
    gradients: list[Any] = [None] * len(learnt)
    for cells in zip(*(which.T.flatten().split(size) for which in (run, steps)), strict=True):
        loss, tensors = part(*cells)
        moving = (tensors[0] > 0).any(2).sum() if reduce == "sequence" else (tensors[0] > 0).sum()
        total, count = total + loss.detach() * moving, count + moving
        if loss.requires_grad:
            for i, new in enumerate(torch.autograd.grad(loss * moving, learnt, allow_unused=True)):
                gradients[i] = new if gradients[i] is None else gradients[i] if new is None else gradients[i] + new
        others.append([tensor.detach() for tensor in tensors])
        del loss, tensors
    whole = [torch.cat(each)[:, 0].unflatten(0, steps.T.shape).transpose(0, 1) for each in zip(*others, strict=True)]
    return _Known.apply(total, gradients, *learnt) / max(int(count), 1), whole


class _Known(torch.autograd.Function):
    """A value whose gradients have been computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        return None, None, *(None if each is None else each * scale for each in ctx.gradients)
