"""Sampling: row by row (`sample`), or the same result without needless computation (`generate`)."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser, slice_cond
from dforce.core.matrix import checked_matrix
from dforce.core.noise import Noise, NoiseSource
from dforce.core.schedule import Schedule
from dforce.core.step import Draw, Memory, Std, Step, advance, extrapolation, gaussian_draw, no_memory
from dforce.core.transition import coefficients
from dforce.core.tree import State, select
from dforce.core.wavefront import ordered, wavefront


def _rows(matrix: Tensor, x: Tensor, schedule: Schedule, order: int) -> Tensor:
    """The matrix as [M, B, T] on x's device, checked."""
    if order not in (1, 2):
        raise ValueError(f"order must be 1 (DDIM/DDPM) or 2 (2M), got {order}")
    matrix = checked_matrix(matrix, schedule.levels, horizon=x.shape[1], complete=False).to(x.device)
    if matrix.ndim == 3 and matrix.shape[1] != len(x):
        raise ValueError(f"the matrix is for a batch of {matrix.shape[1]}, x has {len(x)}")
    return matrix if matrix.ndim == 3 else matrix[:, None].expand(-1, len(x), -1)


def sample(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, *, state: State = None,
           cond: Cond | None = None, eta: float = 0.0, order: int = 2, draw: Draw = gaussian_draw,
           noise: NoiseSource | None = None, std: Std | None = None, min_std: float = 0.0) -> Iterator[Step]:
    """Yields the step of every row of `matrix` [M, T] or [M, B, T], from x [B, T, *E] on; each step has all tokens.

    `generate` gives the same end faster. `noise` is drawn only where a step is stochastic.
    """
    rows = _rows(matrix, x, schedule, order)
    state = denoiser.init_state(len(x), cond) if state is None else state
    noise = noise or Noise()
    noisy = eta > 0 or std is not None or min_std > 0 or draw is not gaussian_draw
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
        del step, after  # frees their memory before the network's next call


@torch.no_grad()
def generate(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, *, state: State = None,
             cond: Cond | None = None, eta: float = 0.0, order: int = 2, noise: NoiseSource | None = None,
             path: Literal["auto", "wavefront", "constant", "rows", "double_loop"] = "auto") -> Tensor:
    """The tokens at the end of `sample`, [B, T, *E], equal up to rounding, without needless computation.

    path: "wavefront" (recurrent denoisers without guidance): the cells with row + token = s are one batched step;
    "constant": the same with equal shapes in all stages, for CUDA graphs; "rows": finished tokens are absorbed once,
    and tokens that have not started are left alone (without guidance); "double_loop": every token at every row; "auto":
    the first that is possible.
    """
    rows = _rows(matrix, x, schedule, order)
    state = denoiser.init_state(len(x), cond) if state is None else state
    may_wave = denoiser.recurrent and not denoiser.global_x0 and ordered(rows)
    may_absorb = denoiser.causal and ordered(rows) and not denoiser.keeps_chunk
    if path == "auto":
        # a wavefront shows a finished token once more to the tokens behind it: a single token has none
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
               eta: float, order: int, noise: NoiseSource | None) -> Tensor:
    """Row by row over the tokens that move; the finished prefix is in the state."""
    noise, memory, tokens = noise or Noise(), no_memory(x), torch.arange(x.shape[1], device=x.device)
    moves = (rows[:-1] != rows[1:]).any(1).cpu()                 # [M - 1, T]
    final = (rows == rows[-1]).all(1).cpu()                      # [M, T]: at its last level for good
    done = 0
    x = x.clone()
    for row, (level, to) in enumerate(zip(rows[:-1], rows[1:], strict=True)):
        prefix = int(final[row].long().cumprod(0).sum())
        if prefix > done:
            past = slice(done, prefix)
            state, done = denoiser.absorb(x[:, past], level[:, past], state, slice_cond(cond, past)), prefix
        moving = moves[row].nonzero()
        if not len(moving):
            continue
        now = slice(done, x.shape[1] if denoiser.global_x0 else int(moving[-1]) + 1)
        step, part, _ = advance(denoiser, schedule, x[:, now], level[:, now], to[:, now], state, slice_cond(cond, now),
                                memory=Memory(memory.x0[:, now], memory.level[:, now]), eta=eta, order=order,
                                noise=noise(row, tokens[now], x[:, now]) if eta > 0 else None)
        x[:, now], memory.x0[:, now], memory.level[:, now] = step.x, part.x0, part.level
    return x


class Descent:
    """`generate` for single tokens that fall, without noise, by the same levels again and again.

    What does not depend on the tokens, half of the time of a small network on a CPU, is computed once.
    """

    def __init__(self, schedule: Schedule, levels: Tensor, order: int = 2):
        """levels: [S + 1], falling, as `Schedule.grid` has them. order: as of `generate`."""
        level, to = levels[:-1, None], levels[1:, None]
        of_x0, of_x, _ = coefficients(schedule, level, to, level, eta=0.0)
        before = torch.cat([torch.zeros_like(level[:1]), level[:-1]])
        factors = torch.stack([of_x0, of_x, (order - 1) * extrapolation(schedule, level, to, before)])
        self._steps = list(zip(level, factors.float().unbind(1), strict=True))

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, x: Tensor, state: State, cond: Cond | None = None) -> Tensor:
        """The tokens [B, 1, *E] at the end, from x [B, 1, *E], float32, on; equal to `generate` bit for bit."""
        last = torch.zeros_like(x)
        for level, (of_x0, of_x, by_last) in self._steps:
            x0 = denoiser(x, level.expand(len(x), 1), state, cond)[0]
            x, last = of_x0 * (x0 + by_last * (x0 - last)) + of_x * x, x0
        return x
