"""How well a model denoises held-out data, noise by noise: what a rollout is made of, seen long before there is one."""

from typing import Any

import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser
from dforce.core.loss import corrupt
from dforce.core.noise import Noise, NoiseSource
from dforce.core.schedule import Schedule
from dforce.core.tree import State, fork, map_state

STDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # noise std over signal, beside pure noise
PURE, KEPT = "pure", "kept"
ERROR = "val_error_"  # before these, in the metrics of a validation


def noted(metrics: dict[str, float], before: str) -> str:
    """A line on a step: its loss, and the last validation's error from noise beside that of keeping the token before,
    which the line `before` has where this step had no validation."""
    errors = [metrics.get(ERROR + name) for name in (PURE, KEPT)]
    held_out = (f", held out from noise {errors[0]:.3f}, keeping the last {errors[1]:.3f}" if None not in errors
                else "".join(before.partition(",")[1:]))
    return f"loss {metrics['loss']:.4f}{held_out}"


@torch.no_grad()
def held_out_error(denoiser: Denoiser, schedule: Schedule, batch: Any, *, stds: tuple[float, ...] = STDS,
                   rows: int = 16, state: State = None, noise: NoiseSource | None = None) -> dict[str, Tensor]:
    """Root mean square error of x0_hat over the first `rows` sequences of a `Batch`, [] each, in the data's units.

    Keys: the noise std in data units (sigma / alpha, the nearest level's) as text, "pure" for level K, "kept" for the
    guess that a token is the one before it. The last token is denoised after its clean past; a denoiser that is not
    causal gets all tokens alike noisy. An exact denoiser errs less the less noise there is. Padding does not count.
    state: before the first token. The same `noise` gives the same numbers.
    """
    x, mask, cond, state = map_state(lambda leaf: leaf[:rows], (batch.x, batch.mask, batch.cond or {}, state))
    valid = torch.ones_like(x, dtype=torch.bool) if mask is None else mask.view(
        *mask.shape, *(1,) * (x.ndim - mask.ndim)).expand_as(x)
    last = _last(valid) if denoiser.causal else None
    levels = torch.tensor([schedule.nearest(std) for std in stds] + [schedule.levels], device=x.device)
    noisy = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if last is None else last
    level = torch.where(noisy, levels[:, None, None], 0)                    # [L, R, T]
    flat, names = level.flatten(0, 1), [*(f"{std:g}" for std in stds), PURE]
    start = denoiser.init_state(len(x), cond or None) if state is None else state
    drawn = (noise or Noise())(0, torch.arange(x.shape[1], device=x.device), x)
    given = fork((x, drawn, start, cond), len(levels))
    x0_hat, _ = denoiser(corrupt(schedule, given[0], flat, given[1]), flat, given[2], given[3] or None)
    counted = valid & noisy.view(*noisy.shape, *(1,) * (x.ndim - 2))
    errors = [_rms(each - x, counted) for each in x0_hat.view(len(levels), *x.shape)]
    by_noise = dict(zip(names, errors, strict=True))
    if last is not None and x.shape[1] > 1:
        by_noise[KEPT] = _rms((x[:, 1:] - x[:, :-1]), counted[:, 1:])
    return by_noise


def _last(valid: Tensor) -> Tensor:
    """Bool [R, T]: true at the last token of each sequence that is not padding, nowhere in one that is all padding."""
    some = valid.flatten(2).any(2)
    return some & (some.flip(1).cumsum(1).flip(1) == 1)


def _rms(error: Tensor, counted: Tensor) -> Tensor:
    return ((error.float().square() * counted).sum() / counted.sum().clamp(min=1)).sqrt()
