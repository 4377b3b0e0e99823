"""Objectives: losses as modules that own the denoiser, so that `fit` can wrap them for several processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Cond, Denoiser, slice_cond
from dforce.core.elbo import held_out_bound
from dforce.core.loss import DECAY, Levels, Weight, forcing_loss, fused_snr, independent, jolted, shared
from dforce.core.noise import Noise
from dforce.core.schedule import Schedule
from dforce.core.tree import State, leaves, map_state, reset
from dforce.guidance.inpaint import inpaint
from dforce.train.validation import held_out_error

BUILDABLE = ("ForcingObjective", "InpaintingObjective", "final")  # by name, in a configuration

BOUND_ROWS, BOUND_LEVELS = 16, 4  # of validation: one row in 16, 4 levels beside the first
ERROR_ROWS = 4                    # and one row in 4
Shown = Callable[[Tensor], Tensor]  # x0 [B, T, *E] -> bool of the same shape, true where an entry is known


class ForcingObjective(nn.Module):
    """The loss as a module that owns the denoiser, so that DDP and FSDP can wrap it.

    objective(batch, generator) -> (loss, logs); `batch` has x [B, T, *E], mask, cond. In evaluation mode the logs also
    have `error_<noise>` (`held_out_error`, of a quarter of the rows) and, of a causal denoiser, `bound` in nats per
    token (`held_out_bound`, of a sixteenth). Their levels and noise follow the generator's seed alone.

    jolt: std of `jolted`, in training alone; 0 for none.
    carry: a window begins in the state in which the window before it in the same row ended, without gradient, except
    where `batch.first`. Then objective(batch, generator, carried) -> (loss, logs, carried), tensors of B rows, None at
    first.
    """

    def __init__(self, denoiser: nn.Module, schedule: Schedule, *, levels: Levels = independent,
                 weight: Weight | None = None, jolt: float = 0.0, carry: bool = False):
        super().__init__()
        if carry and not denoiser.causal:
            raise ValueError("carry=True needs a causal denoiser: others end a window in no state that goes on")
        self.denoiser, self.schedule, self.levels, self.carry = denoiser, schedule, levels, carry
        self.weight, self.jolt = weight or fused_snr(decay=DECAY), jolt

    def forward(self, batch: Any, generator: torch.Generator | None = None,
                carried: list[Tensor] | None = None) -> tuple[Any, ...]:
        before = None if carried is None else self._begin(batch, carried)
        x = jolted(batch.x, self.jolt, generator) if self.jolt and self.training else batch.x
        loss, state = forcing_loss(self.denoiser, self.schedule, x, mask=batch.mask, cond=batch.cond,  # type: ignore[arg-type]
                                   state=before, levels=self.levels, weight=self.weight, generator=generator)
        logs = {"loss": loss.detach()}
        if not self.training:
            logs |= self._held_out(batch, generator, before)
        return (loss, logs, [leaf.detach() for leaf in leaves(state)]) if self.carry else (loss, logs)

    def _held_out(self, batch: Any, generator: torch.Generator | None, state: State) -> dict[str, Tensor]:
        """Errors at each noise, and nats per token. Draws nothing from the generator: the loss does not change."""
        noise = Noise(0 if generator is None else generator.initial_seed() % 2**63)
        few = {"state": state, "noise": noise}
        some, one = (max(1, len(batch.x) // part) for part in (ERROR_ROWS, BOUND_ROWS))
        with torch.autocast(batch.x.device.type, enabled=False):  # at level 1 an error of bfloat16 costs nats
            errors = held_out_error(self.denoiser, self.schedule, batch, rows=some, **few)  # type: ignore[arg-type]
            logs = {f"error_{name}": value for name, value in errors.items()}
            if self.denoiser.causal:
                logs["bound"] = held_out_bound(self.denoiser, self.schedule, batch, levels=BOUND_LEVELS, rows=one,  # type: ignore[arg-type]
                                               **few)
        return logs

    def _begin(self, batch: Any, carried: list[Tensor]) -> State:
        """The state before the window: the one carried here, or a fresh one in rows that begin anew."""
        size = len(batch.x)
        if len(carried[0]) != size:
            raise ValueError(f"states of {len(carried[0])} rows were carried to a batch of {size}: keep the batch size")
        fresh, kept = self.denoiser.init_state(size, batch.cond), iter(carried)  # type: ignore[operator]
        # what a bad window left behind goes no further
        broken = torch.stack([~leaf.isfinite().reshape(size, -1).all(1) for leaf in carried]).any(0)
        return reset(map_state(lambda _: next(kept), fresh), fresh, batch.first | broken)


def final(x0: Tensor, *, begin: int = -4, end: int | None = None) -> Tensor:
    """Entries begin..end-1 of the last token's numbers: bool, of x0's shape [B, T, E]; ValueError where there are none.

    The last 4 numbers of a maze's token, stacked or not, are the state (x, y, vx, vy) in which the window ends:
    Diffuser's goal. begin=-4, end=-2 is its position alone.
    """
    shown = torch.zeros_like(x0, dtype=torch.bool)
    shown[:, -1, begin:end] = True
    if not shown[:1, -1, begin:end].numel():  # counted by shapes: to look at the entries is to wait for a GPU
        raise ValueError(f"begin={begin}, end={end} names none of the {x0.shape[-1]} numbers of a token")
    return shown


class InpaintingObjective(nn.Module):
    """`forcing_loss` of a denoiser to which the entries `shown(x0)` are shown clean (Janner et al. 2022, section 3.2).

    objective(batch, generator) -> (loss, logs); `batch` has x [B, T, *E], mask, cond. Those entries enter the network
    without noise, and have neither an error nor a gradient. shortest: tokens; each batch is cut, behind, to a length
    drawn uniformly from there to the whole, so that the network knows all these lengths; None: whole windows.
    ValueError for a causal denoiser.
    """

    def __init__(self, denoiser: nn.Module, schedule: Schedule, *, shown: Shown = final, levels: Levels = shared,
                 weight: Weight | None = None, shortest: int | None = None):
        super().__init__()
        if shortest is not None and shortest < 1:
            raise ValueError(f"shortest={shortest}: give a number of tokens >= 1, or None for whole windows")
        if denoiser.causal:
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
        """x, mask and cond of the batch, cut to the length that is trained on in this step."""
        tokens = batch.x.shape[1]
        if self.shortest is None or self.shortest >= tokens:
            return batch.x, batch.mask, batch.cond
        device = generator.device if generator is not None else None
        kept = slice(int(torch.randint(self.shortest, tokens + 1, (), generator=generator, device=device)))
        return batch.x[:, kept], None if batch.mask is None else batch.mask[:, kept], slice_cond(batch.cond, kept)
