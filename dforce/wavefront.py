"""The wavefront: cells (row m, token t) of a recurrent denoiser with m + t = s do not depend on each other.

Cell (m, t) needs the latent that token t - 1 left at row m (stage s - 1) and the token's own value after row m - 1
(also stage s - 1). So stage s runs all its cells as one batched single-token step, and a 60-token plan costs
M + T small calls in place of M * T: 18x faster at batch 1, with equal results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dforce.denoiser import Cond, Denoiser
from dforce.noise import Noise
from dforce.sample import Memory, advance, no_memory
from dforce.schedule import Schedule
from dforce.tree import State, fork, map_state


def _lives(rows: Tensor) -> tuple[Tensor, Tensor]:
    """First row at which each token moves, and the row at which it has reached its last level; [T], on the CPU."""
    moves = (rows[:-1] != rows[1:]).any(1).cpu()
    counter = torch.arange(1, len(moves) + 1)[:, None]
    last = (moves * counter).amax(0)                                             # 0 for tokens that never move
    first = torch.where(moves, counter - 1, len(moves) + 1).amin(0)
    return torch.where(last == 0, 0, first), last


def ordered(rows: Tensor) -> bool:
    """Do tokens start and finish in order (as in every pyramid)? rows: [M, B, T]."""
    first, last = _lives(rows)
    return bool((first.diff() >= 0).all() and (last.diff() >= 0).all())


def wavefront(denoiser: Denoiser, schedule: Schedule, rows: Tensor, x: Tensor, *, state: State, cond: Cond | None,
              eta: float, order: int, noise: Noise | None) -> Tensor:
    """x [B, T, *E] walked down rows [M, B, T] by stages; see the module's docstring. The caller checks `ordered`."""
    batch, time = x.shape[:2]
    first, last = _lives(rows)
    noise, token = noise or Noise(), torch.arange(time)
    memory = Memory(*(leaf.transpose(0, 1).contiguous() for leaf in no_memory(x)))  # token first: gathers are views
    x = x.transpose(0, 1).contiguous()
    # latent[t] is the state before token t, as of the last stage that wrote it.
    latent = map_state(lambda leaf: leaf[None].repeat(time + 1, *(1,) * leaf.ndim), state)
    per_token = {name: value.transpose(0, 1) for name, value in ((cond or {}).get("token") or {}).items()}
    for stage in range(int((last + token).max()) + 1):
        row = stage - token
        active = (row >= first) & (row <= last)
        cells = active.nonzero()[:, 0]
        if not len(cells):
            continue
        row, n = row[cells], len(cells)
        cells, row = cells.to(x.device), row.to(x.device)
        level, to = rows[row, :, cells], rows[torch.minimum(row + 1, last[cells.cpu()].to(x.device)), :, cells]
        flat = _flatten(x[cells])
        drawn = noise(_each(row, batch), _each(cells, batch), flat,
                      sample=torch.arange(batch, device=x.device).repeat(n)) if eta > 0 else None
        step, after, carry = advance(
            denoiser, schedule, flat, level.reshape(-1, 1), to.reshape(-1, 1),
            map_state(lambda leaf, at=cells: leaf[at].flatten(0, 1), latent), _cond(cond, per_token, cells),
            memory=Memory(_flatten(memory.x0[cells]), memory.level[cells].reshape(-1, 1)), eta=eta, order=order,
            noise=drawn)
        x[cells] = step.x.view(n, batch, *x.shape[2:])
        memory.x0[cells] = after.x0.view(n, batch, *x.shape[2:])
        memory.level[cells] = after.level.view(n, batch)
        map_state(lambda leaf, new, at=cells: leaf.index_copy_(0, at + 1, new.view(len(at), batch, *leaf.shape[2:])),
                  latent, carry)
    return x.transpose(0, 1).contiguous()


def _flatten(cells: Tensor) -> Tensor:
    """[n, B, *E] -> [n B, 1, *E]: every cell is a sequence of one token."""
    return cells.flatten(0, 1)[:, None]


def _each(counter: Tensor, batch: int) -> Tensor:
    return counter.repeat_interleave(batch)[:, None]


def _cond(cond: Cond | None, per_token: dict[str, Tensor], cells: Tensor) -> Cond | None:
    """Conditioning of the cells: their own token entries, and the static ones once for each cell."""
    if not cond:
        return cond
    static = fork(cond.get("static") or {}, len(cells))
    return {**cond, "static": static, "token": {name: _flatten(value[cells]) for name, value in per_token.items()}}
