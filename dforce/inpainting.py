"""Training with known entries shown clean: the loss of a network that will be sampled under `inpaint(show="clean")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dforce.denoiser import Cond, Denoiser, cut
from dforce.guidance import inpaint
from dforce.loss import Levels, Weight, forcing_loss, shared
from dforce.schedule import Schedule

Shown = Callable[[Tensor], Tensor]  # x0 [B, T, *E] -> bool of the same shape, true where an entry is known


def final(x0: Tensor, *, begin: int = -4, end: int | None = None) -> Tensor:
    """Entries begin..end-1 of the last token's numbers: bool, of x0's shape [B, T, E].

    A raw token is (action, observation), so the last 4 numbers of a maze's token, stacked or not, are the state
    (x, y, vx, vy) in which the window ends: Diffuser's goal. begin=-4, end=-2 is its position alone.
    ValueError where these are no entries at all.
    """
    shown = torch.zeros_like(x0, dtype=torch.bool)
    shown[:, -1, begin:end] = True
    if not shown[:1, -1, begin:end].numel():  # counted by shapes: to look at the entries is to wait for a GPU
        raise ValueError(f"begin={begin}, end={end} names none of the {x0.shape[-1]} numbers of a token")
    return shown


class InpaintingObjective(nn.Module):
    """`forcing_loss` of a denoiser to which the entries `shown(x0)` are shown clean (Janner et al. 2022, section 3.2).

    objective(batch, generator) -> (loss, logs); `batch` has x [B, T, *E], mask, cond. The denoiser is wrapped in
    `inpaint` with the data themselves, in training as in sampling, so those entries enter the network without noise,
    and have neither an error nor a gradient.

    shortest: None trains on whole windows. A number of tokens: each batch is cut, behind, to a length that is drawn
    uniformly from those between it and the whole, so that the network knows windows of all these lengths to plan with.
    ValueError for a causal denoiser, whose tokens never hear of what is shown in later ones, and for shortest < 1.
    """

    def __init__(self, denoiser: nn.Module, schedule: Schedule, *, shown: Shown = final, levels: Levels = shared,
                 weight: Weight | None = None, shortest: int | None = None):
        super().__init__()
        if shortest is not None and shortest < 1:
            raise ValueError(f"shortest={shortest}: give a number of tokens >= 1, or None for whole windows")
        if getattr(denoiser, "causal", False):
            raise ValueError("a causal denoiser cannot look ahead to entries that are shown: use net=temporal, or "
                             "net=transformer net.causal=false")
        self.denoiser, self.schedule, self.shown, self.levels, self.weight = denoiser, schedule, shown, levels, weight
        self.shortest = shortest

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        x, mask, cond = self._cut(batch, generator)
        known: Denoiser = inpaint(self.denoiser, x, self.shown(x), show="clean")  # type: ignore[arg-type]
        loss, _ = forcing_loss(known, self.schedule, x, mask=mask, cond=cond, levels=self.levels, weight=self.weight,
                               generator=generator)
        return loss, {"loss": loss.detach()}

    def _cut(self, batch: Any, generator: torch.Generator | None) -> tuple[Tensor, Tensor | None, Cond | None]:
        """x, mask and cond of the batch, as many tokens of them as are trained on this time."""
        tokens = batch.x.shape[1]
        if self.shortest is None or self.shortest >= tokens:
            return batch.x, batch.mask, batch.cond
        device = generator.device if generator is not None else None
        kept = slice(int(torch.randint(self.shortest, tokens + 1, (), generator=generator, device=device)))
        return batch.x[:, kept], None if batch.mask is None else batch.mask[:, kept], cut(batch.cond, kept)
