"""Sampling: one row at a time (`sample`), or the same result with nothing needless computed (`generate`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dforce.denoiser import Cond, Denoiser, cut
from dforce.matrix import check
from dforce.noise import Noise
from dforce.schedule import Schedule
from dforce.transition import Gaussian, transition
from dforce.tree import State, select


class Memory(NamedTuple):
    """What second-order sampling remembers of each token: its estimate x0 [B, T, *E] at its last move, made at
    `level` [B, T]. A level that is not above the token's present one means that there is nothing to remember."""

    x0: Tensor
    level: Tensor


class Step(NamedTuple):
    """One row of sampling."""

    x: Tensor         # [B, T, *E] after the step
    x0: Tensor        # [B, T, *E] the denoiser's estimate
    kernel: Gaussian  # the distribution that x was drawn from
    level: Tensor     # [B, T] levels before
    to: Tensor        # [B, T] levels after
    ancestors: Tensor | None = None  # [B] where the draw resampled its particles: row b continues row ancestors[b]


# A draw decides the noise of a step: (step whose x is still the old one, noise [B, T, *E]) -> (next x, ancestors).
Draw = Callable[[Step, Tensor], tuple[Tensor, Tensor | None]]

# An explicit std: a number, [B, T], or a rule (level [B, T], to [B, T]) -> [B, T], for one that falls along the path.
Std = Tensor | float | Callable[[Tensor, Tensor], Tensor]


def plain(step: Step, noise: Tensor) -> tuple[Tensor, None]:
    """The ordinary draw: mean + std * noise."""
    return step.kernel.sample(noise), None


def no_memory(x: Tensor) -> Memory:
    """Memory of tokens that have not moved yet."""
    return Memory(torch.zeros_like(x), torch.zeros(x.shape[:2], dtype=torch.long, device=x.device))


def forget(memory: Memory, where: Tensor) -> Memory:
    """Memory dropped for the tokens `where` [B, T], as it must be when they are noised again."""
    return memory._replace(level=memory.level.masked_fill(where, 0))


def extrapolate(schedule: Schedule, x0: Tensor, level: Tensor, to: Tensor, memory: Memory) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022b, Algorithm 2) per token: x0 + (x0 - x0_prev) h / (2 h_prev).

    h is the step in half log-SNR. First order where a token has no memory, is held, or steps to level 0.
    With eta = 1 the same extrapolation gives SDE-DPM-Solver++(2M).
    """
    factor = extrapolation(schedule, level, to, memory.level)
    return x0 + factor.view(level.shape + (1,) * (x0.ndim - 2)).to(x0.dtype) * (x0 - memory.x0)


def extrapolation(schedule: Schedule, level: Tensor, to: Tensor, before: Tensor) -> Tensor:
    """The factor h / (2 h_prev) of `extrapolate`, float64, for a last move at level `before`; 0 for first order."""
    half = 0.5 * schedule.log_snr(torch.stack([level, to, before]))
    step, last = half[1] - half[0], half[0] - half[2]
    usable = (before > level) & (to < level) & (to > 0) & (last > 0)
    return torch.where(usable, step / (2 * last).where(usable, 1.0), 0.0)


def advance(denoiser: Denoiser, schedule: Schedule, x: Tensor, level: Tensor, to: Tensor, state: State,
            cond: Cond | None = None, *, memory: Memory, eta: float = 0.0, order: int = 2, draw: Draw = plain,
            noise: Tensor | Callable[[], Tensor] | None = None, std: Std | None = None, min_std: float = 0.0,
            ) -> tuple[Step, Memory, State]:
    """One pure step of any set of tokens x [B, T, *E] from `level` to `to` [B, T].

    Returns the step, the memory after it and the denoiser's state past the last token. `noise` [B, T, *E] standard
    normal, or what draws it, asked once the network's activations are gone; None where eta = 0 needs none. eta, std,
    min_std as in `transition`; order 1 is DDIM/DDPM, 2 is 2M.
    """
    x0, state = denoiser(x, level, state, cond)
    mean = x0 if order == 1 else extrapolate(schedule, x0, level, to, memory)
    spread = std(level, to) if callable(std) else std
    kernel = transition(schedule, x, mean, level, to, eta=eta, std=spread, min_std=min_std)
    step = Step(x, x0, kernel, level, to)
    noise = noise() if callable(noise) else noise
    after, ancestors = (kernel.mean, None) if noise is None and draw is plain else draw(
        step, torch.zeros_like(x) if noise is None else noise)
    moved = to < level
    shape = moved.shape + (1,) * (x0.ndim - 2)
    memory = Memory(torch.where(moved.view(shape), x0, memory.x0), torch.where(moved, level, memory.level))
    return step._replace(x=after, ancestors=ancestors), memory, state


def _rows(matrix: Tensor, x: Tensor, schedule: Schedule, order: int) -> Tensor:
    """The matrix as [M, B, T] on x's device, checked."""
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (DDIM/DDPM) or 2 (2M), got {order}")
    matrix = check(matrix, schedule.levels, horizon=x.shape[1], complete=False).to(x.device)
    if matrix.ndim == 3 and matrix.shape[1] != len(x):
        raise ValueError(f"the matrix is for a batch of {matrix.shape[1]}, x has {len(x)}")
    return matrix if matrix.ndim == 3 else matrix[:, None].expand(-1, len(x), -1)


def sample(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, *, state: State = None,
           cond: Cond | None = None, eta: float = 0.0, order: int = 2, draw: Draw = plain, noise: Noise | None = None,
           std: Std | None = None, min_std: float = 0.0) -> Iterator[Step]:
    """Walk down the rows of `matrix` [M, T] or [M, B, T] from x [B, T, *E], yielding every step, all tokens in each.

    `*_, last = sample(...)` for the end only; `generate` gives the same tokens faster. `noise` is drawn only where a
    step is stochastic (eta > 0, std, min_std or a draw of one's own).
    """
    rows = _rows(matrix, x, schedule, order)
    state = denoiser.init_state(len(x), cond) if state is None else state
    noise = noise or Noise()
    noisy = eta > 0 or std is not None or min_std > 0 or draw is not plain
    tokens, memory = torch.arange(x.shape[1], device=x.device), no_memory(x) if order == 2 else None
    for row, (level, to) in enumerate(zip(rows[:-1], rows[1:], strict=True)):
        step, after, _ = advance(denoiser, schedule, x, level, to, state, cond, memory=memory or Memory(x, level),
                                 eta=eta, order=order, draw=draw, std=std, min_std=min_std,
                                 noise=partial(noise, row, tokens, x) if noisy else None)
        memory = after if order == 2 else None  # first order reads none
        if step.ancestors is not None:
            memory, state = select((memory, state), step.ancestors)
            cond = select(cond, step.ancestors) if cond else cond
        x = step.x
        yield step
        del step, after  # so that the network's next call need not share memory with what nobody reads any more


@torch.no_grad()
def generate(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, *, state: State = None,
             cond: Cond | None = None, eta: float = 0.0, order: int = 2, noise: Noise | None = None,
             path: Literal["auto", "wavefront", "constant", "rows", "double_loop"] = "auto") -> Tensor:
    """The tokens at the end of `sample`, [B, T, *E], computing nothing that nobody needs. Equal up to rounding.

    "wavefront" (recurrent denoisers without guidance): stage s holds the cells with row + token = s, all of them one
    batched step of the network; "constant" is the same with equal shapes in all stages, as CUDA graphs and compiled
    stages want. "rows": finished tokens are absorbed once into the state, tokens that have not started
    are left alone (unless guidance needs their estimates). "double_loop": every token at every row. "auto": the first
    of these that the denoiser allows. Raises ValueError if a path is asked for that it does not.
    """
    from dforce.wavefront import ordered, wavefront

    rows = _rows(matrix, x, schedule, order)
    state = denoiser.init_state(len(x), cond) if state is None else state
    may_wave = denoiser.recurrent and not denoiser.global_x0 and ordered(rows)
    # What a finished token is absorbed as may differ from what it is beside others (history guidance).
    may_absorb = denoiser.causal and ordered(rows) and not getattr(denoiser, "keeps_chunk", False)
    if path == "auto":
        # a wavefront shows finished tokens once more, for those behind them: one token alone has none
        path = "wavefront" if may_wave and x.shape[1] > 1 else "rows" if may_absorb else "double_loop"
    match path:
        case "wavefront" | "constant":
            if not may_wave:
                raise ValueError("a wavefront needs a recurrent denoiser without guidance and a matrix whose tokens "
                                 "start and finish in order; use path='auto'")
            return wavefront(denoiser, schedule, rows, x, state=state, cond=cond, eta=eta, order=order, noise=noise,
                             constant=path == "constant")
        case "rows":
            if not may_absorb:
                raise ValueError("absorbing finished tokens needs a causal denoiser without history guidance and a "
                                 "matrix whose tokens start and finish in order; use path='auto'")
            return _absorbing(denoiser, schedule, rows, x, state=state, cond=cond, eta=eta, order=order, noise=noise)
        case "double_loop":
            for step in sample(denoiser, schedule, rows, x, state=state, cond=cond, eta=eta, order=order, noise=noise):
                x = step.x
            return x
        case _:
            raise ValueError(f"path must be 'auto', 'wavefront', 'constant', 'rows' or 'double_loop', got {path!r}")


def _absorbing(denoiser: Denoiser, schedule: Schedule, rows: Tensor, x: Tensor, *, state: State, cond: Cond | None,
               eta: float, order: int, noise: Noise | None) -> Tensor:
    """Row by row over the window of tokens that move: the finished prefix lives in the state."""
    noise, memory, tokens = noise or Noise(), no_memory(x), torch.arange(x.shape[1], device=x.device)
    moves = (rows[:-1] != rows[1:]).any(1).cpu()                 # [M - 1, T]
    final = (rows == rows[-1]).all(1).cpu()                      # [M, T]: at its last level for good
    done = 0
    x = x.clone()
    for row, (level, to) in enumerate(zip(rows[:-1], rows[1:], strict=True)):
        prefix = int(final[row].long().cumprod(0).sum())
        if prefix > done:
            past = slice(done, prefix)
            state, done = denoiser.absorb(x[:, past], level[:, past], state, cut(cond, past)), prefix
        moving = moves[row].nonzero()
        if not len(moving):
            continue
        now = slice(done, x.shape[1] if denoiser.global_x0 else int(moving[-1]) + 1)
        step, part, _ = advance(denoiser, schedule, x[:, now], level[:, now], to[:, now], state, cut(cond, now),
                                memory=Memory(memory.x0[:, now], memory.level[:, now]), eta=eta, order=order,
                                noise=noise(row, tokens[now], x[:, now]) if eta > 0 else None)
        x[:, now], memory.x0[:, now], memory.level[:, now] = step.x, part.x0, part.level
    return x
