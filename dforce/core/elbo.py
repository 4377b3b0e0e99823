"""The evidence lower bound: how many nats a model gives to every token, from the same transitions that sample it."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser, slice_cond
from dforce.core.loss import corrupt
from dforce.core.noise import Noise, NoiseSource
from dforce.core.schedule import Schedule
from dforce.core.transition import Gaussian, transition
from dforce.core.tree import State, fork, leaves, map_state

FLOATS = 2**24  # in the states and tokens shown to a network at once: 64 MB of them in float32
LEVELS_SALT = 1  # stream of the levels' draws, beside the noise's


class ELBO(NamedTuple):
    """bound = reconstruction - transitions - prior <= log p(x_t | x_<t), each [B, T] float64 in nats per token.

    prior: KL(q(x_K | x0) || N(0, sigma_K^2)). transitions: the sum over k = 2..K of
    KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k)). reconstruction: E log N(x0; x0_hat(x_1), sigma_1^2 / alpha_1^2).
    """

    bound: Tensor
    prior: Tensor
    transitions: Tensor
    reconstruction: Tensor


class _Cells(NamedTuple):
    """Rows that a network evaluates side by side: single tokens, each after its clean past, or whole sequences."""

    x0: Tensor          # [R, S, *E]: S = 1, or all T tokens
    mask: Tensor        # [R, S, *E]: which numbers count
    token: Tensor       # [R, S]: which token of its sequence each is
    sample: Tensor      # [R]: which sequence of the batch
    state: State        # [R, ...]: before the first of the S tokens
    cond: Cond | None


class _Terms(NamedTuple):
    """The terms to be estimated: a random level of low..low+size-1 stands for `size` transitions. [N] each."""

    low: Tensor
    size: Tensor
    row: Tensor         # counter of the noise
    repeats: int        # draws of each term, to be averaged


@torch.no_grad()
def elbo(denoiser: Denoiser, schedule: Schedule, x0: Tensor, *, cond: Cond | None = None, state: State = None,
         mask: Tensor | None = None, levels: int | None = None, samples: int = 1,
         noise: NoiseSource | None = None) -> ELBO:
    """Lower bound of log p(x_t | x_<t) of every token of x0 [B, T, *E] (Ho et al. 2020, eq. 5; Sohl-Dickstein 2015).

    The model is ancestral sampling, all K levels at eta = 1. By the chain rule a token is scored after its *clean*
    past, which is absorbed; each pair of token and level is a call of one token. The sum over T bounds log p(x0). A
    denoiser that is not causal has no such conditionals: all tokens have one level, and only the sum over T is a bound.

    levels: None computes every transition; n in 1..K-1 draws one level from each of n strata of log-SNR, unbiased.
    samples: draws of noise (and level) of each term, averaged. noise: counters, so that no cutting into calls matters.
    mask: [B, T] or [B, T, *E], true where there is data; elsewhere a token counts 0.
    """
    terms = _terms(schedule, levels, samples, x0.device)
    state = denoiser.init_state(len(x0), cond) if state is None else state
    valid = torch.ones_like(x0, dtype=torch.bool) if mask is None else mask.view(
        *mask.shape, *(1,) * (x0.ndim - mask.ndim)).expand_as(x0)
    whole = _Cells(x0, valid, torch.arange(x0.shape[1], device=x0.device).expand(x0.shape[:2]),
                   torch.arange(len(x0), device=x0.device), state, cond)
    parts = [_score(denoiser, schedule, cells, terms, noise or Noise())
             for cells in (_tokens(denoiser, whole, len(terms.low)) if denoiser.causal else [whole])]
    transitions, reconstruction = (torch.cat(part, 1) for part in zip(*parts, strict=True))
    prior = _prior(schedule, x0, valid)
    return ELBO(reconstruction - transitions - prior, prior, transitions, reconstruction)


def held_out_bound(denoiser: Denoiser, schedule: Schedule, batch: Any, *, levels: int = 8, rows: int = 32,
                   state: State = None, noise: NoiseSource | None = None) -> Tensor:
    """Mean bound in nats per token of the first `rows` sequences of a `Batch`, [] float64: cheap enough for validation.

    It costs T absorbed tokens and rows * T * (levels + 1) calls of a single one. The same `noise` every time makes
    the numbers of a run comparable. state: before the first token of every sequence of the batch; None for fresh ones.
    """
    x, mask, cond, state = map_state(lambda leaf: leaf[:rows], (batch.x, batch.mask, batch.cond or {}, state))
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    score = elbo(denoiser, schedule, x, cond=cond, state=state, mask=mask, noise=noise,
                 levels=min(levels, schedule.levels - 1) or None)
    return score.bound.sum() / (mask if mask.ndim == 2 else mask.flatten(2).any(2)).sum().clamp(min=1)


def _prior(schedule: Schedule, x0: Tensor, mask: Tensor) -> Tensor:
    last = torch.full(x0.shape[:2], schedule.levels, device=x0.device)
    alpha, sigma = schedule(last, x0)
    std = sigma.expand(x0.shape)
    return Gaussian(alpha * x0, std).kl(Gaussian(torch.zeros_like(std), std), mask)


def _terms(schedule: Schedule, levels: int | None, samples: int, device: torch.device) -> _Terms:
    """Level 1 for the reconstruction, then the strata of 2..K, all of it `samples` times."""
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if levels is not None and not 1 <= levels < schedule.levels:
        raise ValueError(f"levels must lie in 1..{schedule.levels - 1} or be None for all of them, got {levels}")
    edge = schedule.grid(schedule.levels if levels is None else levels + 1)[:-1].flip(0)  # 1 = e_0 < e_1 < ... = K
    low = torch.cat([edge.new_ones(1), edge[:-1] + 1]).to(device)
    size = torch.cat([edge.new_ones(1), edge.diff()]).to(device)
    return _Terms(low.repeat(samples), size.repeat(samples), torch.arange(samples * len(low), device=device), samples)


def _tokens(denoiser: Denoiser, whole: _Cells, terms: int) -> Iterator[_Cells]:
    """The tokens one by one, each with the state after its clean past; as many at once as fit into FLOATS."""
    batch, time = whole.token.shape
    state, held = whole.state, []
    each = sum(leaf[0].numel() for leaf in leaves(state)) + whole.x0[0, 0].numel()
    together = max(1, FLOATS // (each * batch * terms))
    for t in range(time):
        one = slice(t, t + 1)
        cells = _Cells(whole.x0[:, one], whole.mask[:, one], whole.token[:, one], whole.sample, state,
                       slice_cond(whole.cond, one))
        held.append(cells)
        if t + 1 < time:
            clean = torch.zeros(batch, 1, dtype=torch.long, device=whole.x0.device)
            state = denoiser.absorb(cells.x0, clean, state, cells.cond)
        if len(held) == together or t + 1 == time:
            yield map_state(lambda *leaf: torch.cat(leaf), *held)
            held = []


def _score(denoiser: Denoiser, schedule: Schedule, cells: _Cells, terms: _Terms,
           noise: NoiseSource) -> tuple[Tensor, Tensor]:
    """Transition KLs and reconstruction, [B, tokens] each, of cells token by token; B from their `sample`."""
    rows, width = cells.token.shape
    each = sum(leaf[0].numel() for leaf in leaves(cells.state)) + cells.x0[0].numel()
    step = max(1, FLOATS // (each * rows))
    transitions = torch.zeros(rows, width, dtype=torch.float64, device=cells.x0.device)
    reconstruction = transitions.clone()
    for at in range(0, len(terms.low), step):
        low, size, row = (column[at:at + step] for column in terms[:3])
        kl, log_prob = _terms_of(denoiser, schedule, fork(cells, len(low)), low, size, row, noise)
        weight = size.double()[:, None, None] / terms.repeats
        transitions += (kl.view(-1, rows, width) * weight).sum(0)
        reconstruction += (log_prob.view(-1, rows, width) * weight).sum(0)
    batch = int(cells.sample.max()) + 1
    back = (lambda v: v.view(-1, batch).T) if width == 1 else (lambda v: v)
    return back(transitions), back(reconstruction)


def _terms_of(denoiser: Denoiser, schedule: Schedule, cells: _Cells, low: Tensor, size: Tensor, row: Tensor,
              noise: NoiseSource) -> tuple[Tensor, Tensor]:
    """KL (0 at level 1) and log-density (0 elsewhere) of n terms over the cells, forked n times: [n R, S] each."""
    count = len(cells.sample) // len(low)
    low, size, row = (column.repeat_interleave(count) for column in (low, size, row))
    # A sequence shares its level: its first token draws for all.
    normal = noise(row[:, None], cells.token[:, :1], schedule.alpha.new_zeros(len(row), 1), salt=LEVELS_SALT,
                   sample=cells.sample)[:, 0]
    part = (torch.special.ndtr(normal) * size).long().clamp(max=size - 1)
    level = (low + part)[:, None].expand(cells.token.shape)
    x = corrupt(schedule, cells.x0, level,
                noise(row[:, None], cells.token, cells.x0, sample=cells.sample).to(cells.x0.dtype))
    hat, _ = denoiser(x, level, cells.state, cells.cond)
    true, model = (transition(schedule, x, clean, level, level - 1, eta=1.0) for clean in (cells.x0, hat))
    alpha, sigma = schedule(level, x)
    log_prob = Gaussian(hat, (sigma / alpha).to(hat.dtype).expand_as(hat)).log_prob(cells.x0, cells.mask)
    return true.kl(model, cells.mask).double(), torch.where(level == 1, log_prob, 0.0).double()
