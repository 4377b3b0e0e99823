"""Runs that another trainer sampled as traces, whose densities and gradients are then taken here."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dforce.align.fingerprint import fingerprint
from dforce.align.trace import Trace, replay, spreads
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.schedule import Schedule
from dforce.core.step import Std
from dforce.core.tree import map_state

CLOSE = 1e-3  # of the label of a level: timesteps of flows are float32 numbers up to 1000


@torch.no_grad()
def trace_of(latents: Sequence[Tensor] | Tensor, timesteps: Tensor, denoiser: Denoiser, schedule: Schedule, *,
             log_prob: Sequence[Tensor] | Tensor | None = None, reduce: Literal["sum", "mean"] = "sum", last: int = 0,
             cond: Cond | None = None, eta: float = 1.0, std: Std | None = None, min_std: float = 0.0,
             rows: int | None = None, autocast: torch.dtype | None = None) -> Trace:
    """A run of S steps of B images in another library as a trace of one token an image.

    latents: S + 1 times [B, *E], before the first step and after each. timesteps: [S] or [B, S], what the network was
    told at each step, as in `schedule.label`. log_prob: S times [B], or None: taken here, under the weights of now.
    reduce: whether it is a sum over the dimensions or, as in TRL, ddpo-pytorch and Flow-GRPO, their mean. last: the
    level after the last step: 0, or 1 for the set_alpha_to_one=False of Stable Diffusion. denoiser: the policy, its
    guidance included; cond, eta, std, min_std, autocast: as in `record`; rows: as in `replay`.

    Raises ValueError for shapes that do not fit together and for timesteps that `schedule` does not have.
    """
    x = torch.stack([*latents], 1)[:, :, None]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    batch, steps = len(x), x.shape[1] - 1
    if steps < 1 or timesteps.shape not in ((steps,), (batch, steps)):
        raise ValueError(f"{steps + 1} latents of {batch} images are {steps} steps: timesteps must be [{steps}] or "
                         f"[{batch}, {steps}], got {[*timesteps.shape]}")
    level = levels_of(schedule, timesteps.to(x.device).expand(batch, -1))
    level = torch.cat([level, level.new_full((batch, 1), last)], 1)[..., None]
    if (level[:, 1:] > level[:, :-1]).any():
        raise ValueError(f"a run goes down to less noise; these timesteps and last={last} rise: {timesteps.tolist()}")
    spread, dims, euler = spreads(schedule, level, x[:, 0], eta=eta, std=std, min_std=min_std, mask=None)
    model = torch.full((batch,), fingerprint(denoiser, schedule), dtype=torch.int64, device=x.device)
    cond = map_state(lambda leaf: leaf.to(x.device), cond)
    trace = Trace(x, level, spread, torch.zeros_like(spread), dims, euler, model, None, None, cond)
    if log_prob is None:
        return trace._replace(log_prob=replay(trace, denoiser, schedule, rows=rows, autocast=autocast).log_prob)
    nats = torch.stack([*log_prob], 1).to(spread)
    if nats.shape != (batch, steps):
        raise ValueError(f"log_prob must be {steps} times [{batch}], got {len([*log_prob])} times "
                         f"{[*log_prob[0].shape]}")
    nats = nats[..., None] * (dims if reduce == "mean" else 1)
    return trace._replace(log_prob=nats.where(dims > 0, 0.0))


def levels_of(schedule: Schedule, timesteps: Tensor) -> Tensor:
    """The levels 1..K whose labels the timesteps are, of any shape; ValueError for one that is none."""
    label = schedule.label[1:]
    away = (timesteps.to(label)[..., None] - label).abs()
    if bool((away.amin(-1) > CLOSE).any()):
        wrong = timesteps[away.amin(-1) > CLOSE].flatten()[0]
        raise ValueError(f"timestep {float(wrong):g} is no level of this schedule, whose labels go from "
                         f"{float(label[0]):g} to {float(label[-1]):g}: take that of the scheduler that sampled")
    return away.argmin(-1) + 1
