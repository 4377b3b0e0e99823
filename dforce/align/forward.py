"""Errors of a model on clean samples that are noised anew; they need no recorded run."""

import math

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.loss import Weight, corrupt, snr
from dforce.core.schedule import Schedule
from dforce.core.tree import State


def draw_levels(schedule: Schedule, x0: Tensor, generator: torch.Generator | None = None, *,
                shared: bool = True) -> tuple[Tensor, Tensor]:
    """Levels [B, T], uniform in 1..K (`shared`: one for all tokens of a run), and noise [B, T, *E]."""
    device = generator.device if generator is not None else x0.device
    shape = (len(x0), 1) if shared else tuple(x0.shape[:2])
    level = torch.randint(1, schedule.levels + 1, shape, generator=generator, device=device)
    noise = torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype)
    return level.expand(x0.shape[:2]).to(x0.device), noise.to(x0.device)


def denoising_error(denoiser: Denoiser, schedule: Schedule, x0: Tensor, level: Tensor, noise: Tensor, *,
                    cond: Cond | None = None, state: State = None, mask: Tensor | None = None,
                    weight: Weight | None = None) -> Tensor:
    """Weighted mean-square error of x0_hat for clean x0 [B, T, *E] at `level` [B, T] under `noise`; [B].

    The mean is over tokens and dimensions (of `mask` [B, T, *E], if given). The error of the noise is the SNR times
    that of x0, |eps - eps_hat|^2 = (alpha / sigma)^2 |x0 - x0_hat|^2, so `weight` None, the SNR, makes it the error of
    the papers; pass `snr(cap)` where the network is no noise predictor and the SNR of nearly clean tokens would
    drown everything else.
    """
    noisy = corrupt(schedule, x0, level, noise)
    state = denoiser.init_state(len(x0), cond) if state is None else state
    x0_hat, _ = denoiser(noisy, level, state, cond)
    error = (x0_hat - x0).square()
    valid = torch.ones_like(error) if mask is None else mask.expand_as(error).to(error.dtype)
    factor = (weight or snr(math.inf))(schedule.log_snr(level)).to(error.dtype)
    token = (error * valid).flatten(2).sum(2) * factor
    return token.sum(1) / valid.flatten(1).sum(1).clamp(min=1)
