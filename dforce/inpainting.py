"""Training with known entries shown clean: the loss of a network that will be sampled under `inpaint(show="clean")`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dforce.denoiser import Denoiser
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
    if not shown.any():
        raise ValueError(f"begin={begin}, end={end} names none of the {x0.shape[-1]} numbers of a token")
    return shown


class InpaintingObjective(nn.Module):
    """`forcing_loss` of a denoiser to which the entries `shown(x0)` are shown clean (Janner et al. 2022, section 3.2).

    objective(batch, generator) -> (loss, logs); `batch` has x [B, T, *E], mask, cond. The denoiser is wrapped in
    `inpaint` with the data themselves, in training as in sampling, so those entries enter the network without noise,
    and have neither an error nor a gradient. ValueError for a causal denoiser, whose tokens never hear of what is
    shown in later ones.
    """

    def __init__(self, denoiser: nn.Module, schedule: Schedule, *, shown: Shown = final, levels: Levels = shared,
                 weight: Weight | None = None):
        super().__init__()
        if getattr(denoiser, "causal", False):
            raise ValueError("a causal denoiser cannot look ahead to entries that are shown: use net=temporal, or "
                             "net=transformer net.causal=false")
        self.denoiser, self.schedule, self.shown, self.levels, self.weight = denoiser, schedule, shown, levels, weight

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        known: Denoiser = inpaint(self.denoiser, batch.x, self.shown(batch.x), show="clean")  # type: ignore[arg-type]
        loss, _ = forcing_loss(known, self.schedule, batch.x, mask=batch.mask, cond=batch.cond, levels=self.levels,
                               weight=self.weight, generator=generator)
        return loss, {"loss": loss.detach()}
