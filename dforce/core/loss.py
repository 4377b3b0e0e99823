"""The training loss: corrupt every token at its own level, denoise in one pass, weigh the x0 error by the SNR."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.schedule import Schedule
from dforce.core.tree import State

BUILDABLE = (  # by name, in a configuration
    "independent", "even_log_snr", "shared", "rising", "pyramids", "teacher_forcing", "snr", "min_snr", "v_weight",
    "uniform", "fused_snr",
)

Levels = Callable[[Schedule, tuple[int, int], torch.Generator | None], Tensor]  # -> levels [B, T]
Weight = Callable[[Tensor], Tensor]                                             # log-SNR [B, T] -> weight of x0 error

DECAY = 0.9  # per token, of the default weight


def _draw(kind: Callable[..., Tensor], *args: Any, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else None
    return kind(*args, generator=generator, device=device)


def independent(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None, *,
                power: float = 1.0) -> Tensor:
    """Every token at its own level 0..K (Chen et al. 2024, Algorithm 1); power > 1: low levels more often."""
    if power == 1:
        return _draw(torch.randint, 0, schedule.levels + 1, shape, generator=generator)
    if not power > 0:
        raise ValueError(f"power must be above 0, got {power}")
    return ((schedule.levels + 1) * _draw(torch.rand, shape, generator=generator) ** power).long().clamp(
        max=schedule.levels)


def even_log_snr(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None, *,
                 steps: int = 40) -> Tensor:
    """Every token at one of the levels of `steps` even steps of log-SNR, or clean, each as likely.

    Of the uniform levels of `linear` half have an SNR below .1 and one in 36 above 100: a network then seldom sees what
    every token of a rollout stands on, a clean past.
    """
    grid = schedule.grid(steps)
    index = _draw(torch.randint, len(grid), shape, generator=generator)
    return grid.to(index.device)[index]


def shared(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None, *,
           power: float = 1.0) -> Tensor:
    """One level 0..K a sequence, drawn as in `independent`: full-sequence diffusion."""
    return independent(schedule, (shape[0], 1), generator, power=power).expand(shape)


def rising(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None, *,
           power: float = 1.0) -> Tensor:
    """Independent levels, sorted so that they rise along time, as in every row of a pyramid."""
    return independent(schedule, shape, generator, power=power).sort(1).values


def pyramids(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None, *,
             share: float = 0.5, steps: int = 20) -> Tensor:
    """Rows of planners' schedules: in a `share` of the sequences a random row of a random pyramid, else `independent`.

    A pyramid has `steps` steps evenly spaced in log-SNR and a delay between full sequence and autoregressive (steps
    times u ** 2, u uniform): finished tokens, a few in between, then a long future of pure noise, which independent
    levels hardly show.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is the part of the sequences that show a planner's row, in 0..1, got {share}")
    batch, time = shape
    u, place, chosen = _draw(torch.rand, (3, batch, 1), generator=generator)
    delay = (steps * u**2).round()
    row = place * (steps + delay * (time - 1))
    grid = schedule.grid(steps).to(u.device)
    ahead = (row - delay * torch.arange(time, device=u.device)).round().long().clamp(0, steps)
    return torch.where(chosen < share, grid[ahead], independent(schedule, shape, generator))


def teacher_forcing(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """A clean past, one token at a uniform level 1..K at a uniform position, and a future of pure noise."""
    batch, time = shape
    position = _draw(torch.randint, 0, time, (batch, 1), generator=generator)
    level = _draw(torch.randint, 1, schedule.levels + 1, (batch, 1), generator=generator)
    tokens = torch.arange(time, device=position.device)
    return torch.where(tokens < position, 0, torch.where(tokens == position, level, schedule.levels))


# A weight is that of the x0 error, whatever the network predicts: SNR for the eps objective, SNR + 1 for v, 1 for x0.

def snr(cap: float = 100.0) -> Weight:
    """min(SNR, cap): the eps objective of Ho et al. (2020), capped near clean tokens, where SNR is unbounded."""
    return lambda log_snr: log_snr.exp().clamp(max=cap)


def min_snr(gamma: float = 5.0) -> Weight:
    """min(SNR, gamma) (Hang et al. 2023): in x0 space the same for every parameterisation."""
    return lambda log_snr: log_snr.exp().clamp(max=gamma)


def v_weight(cap: float = 5.0) -> Weight:
    """min(SNR + 1, cap): the v objective (Salimans & Ho 2022), capped near clean tokens."""
    return lambda log_snr: (log_snr.exp() + 1).clamp(max=cap)


def uniform() -> Weight:
    """1 at every level: the x0 objective."""
    return torch.ones_like


def fused_snr(clip: float = 5.0, decay: float = 0.96) -> Weight:
    """Fused SNR (Chen et al. 2024, appendix B.1): a token's SNR together with that of its past.

    With S_t = min(SNR_t, clip) / clip and the running mean C_t = decay C_{t-1} + (1 - decay) S_t (C_0 = S_0), the
    weight is clip (1 - (1 - S_t)(1 - decay C_{t-1})), with C before the first token 0, as in the authors' code. For a
    single token it is `min_snr(clip)`. `decay` is per token: for a per-step decay g and stacked tokens pass g ** stack.
    """
    def weight(log_snr: Tensor) -> Tensor:
        ratio = log_snr.exp().clamp(max=clip) / clip
        token = torch.arange(ratio.shape[1], device=ratio.device)
        age = token - 1 - token[:, None]                                # of token s in C_{t-1}, [s, t]
        share = torch.where(age < 0, 0.0, decay ** age.clamp(min=0).to(ratio.dtype))
        share[1:] *= 1 - decay                                          # C_0 = S_0
        return clip * (1 - (1 - ratio) * (1 - decay * ratio @ share))
    return weight


def corrupt(schedule: Schedule, x0: Tensor, level: Tensor, noise: Tensor | torch.Generator | None = None) -> Tensor:
    """x_level ~ q(. | x0): x0 [B, T, *E], every token at its own level [B, T]. Level 0 returns x0 bit for bit."""
    if not isinstance(noise, Tensor):
        noise = _draw(torch.randn, x0.shape, generator=noise).to(x0)
    alpha, sigma = schedule(level, x0)
    return alpha.to(x0.dtype) * x0 + sigma.to(x0.dtype) * noise


def jolted(x0: Tensor, std: float, generator: torch.Generator | None = None) -> Tensor:
    """Sequences x0 [B, T, C, ...] whose tokens before a random one have another contrast and other means.

    Up to a cut, uniform in 0..T - 1 tokens, they are scaled by 1 + a about the mean of each channel and moved by b, a
    shared by the channels of a sequence, b drawn for each, both of this std. So a network learns that a past whose
    colours are unlike the data's is to be left, without doubting those that are. White noise does not teach it, for the
    mean of a picture is legible in it at all levels but the highest.
    """
    shape = len(x0), 1, x0.shape[2], *(1,) * (x0.ndim - 3)
    cut = _draw(torch.randint, 0, x0.shape[1], (len(x0), 1), generator=generator).to(x0.device)
    offset = std * _draw(torch.randn, shape, generator=generator).to(x0)
    gain = 1 + std * _draw(torch.randn, shape[:2] + (1,) * (x0.ndim - 2), generator=generator).to(x0)
    mean = x0.mean(tuple(range(3, x0.ndim)), keepdim=True) if x0.ndim > 3 else torch.zeros_like(x0)
    before = torch.arange(x0.shape[1], device=x0.device) < cut
    return torch.where(before.view(*before.shape, *(1,) * (x0.ndim - 2)), mean + (x0 - mean) * gain + offset, x0)


def forcing_loss(denoiser: Denoiser, schedule: Schedule, x0: Tensor, *, mask: Tensor | None = None,
                 cond: Cond | None = None, state: State = None, levels: Levels = independent,
                 weight: Weight | None = None, generator: torch.Generator | None = None) -> tuple[Tensor, State]:
    """Weighted x0 error at random levels, one pass (Chen et al. 2024, Algorithm 1). Returns (loss, state after).

    mask: [B, T] or [B, T, *E], true where there is data. state: before the first token; None: `denoiser.init_state`.
    weight: default `fused_snr(5, .9)`; under `min_snr` what follows from the past alone is hardly learnt.
    """
    level = levels(schedule, (x0.shape[0], x0.shape[1]), generator).to(x0.device)
    noisy = corrupt(schedule, x0, level, generator)
    state = denoiser.init_state(len(x0), cond) if state is None else state
    x0_hat, state = denoiser(noisy, level, state, cond)
    error = (x0_hat.float() - x0.float()).square()
    factor = (weight or fused_snr(decay=DECAY))(schedule.log_snr(level)).to(error.dtype)
    if mask is not None and mask.shape != x0.shape[:2]:
        event = mask.flatten(2)
        error = (error.flatten(2) * event).sum(2) / event.sum(2).clamp(min=1)
        mask = event.any(2)
    else:
        error = error.flatten(2).mean(2)
    error = error * factor
    return (error.mean() if mask is None else (error * mask).sum() / mask.sum().clamp(min=1)), state
