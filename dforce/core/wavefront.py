"""The wavefront: cells (row m, token t) of a recurrent denoiser with m + t = s do not depend on each other.

Cell (m, t) needs the latent of token t - 1 at row m and the value of token t after row m - 1, both of stage s - 1. So
stage s is one batched single-token step, and a 60-token plan costs M + T small calls in place of M * T.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise, NoiseSource
from dforce.core.schedule import Schedule
from dforce.core.step import extrapolation
from dforce.core.transition import coefficients
from dforce.core.tree import State, fork, map_state


def _lives(rows: Tensor) -> tuple[Tensor, Tensor]:
    """For each token the row of its first move and the row where it has reached its last level; [T], on the CPU."""
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
              eta: float, order: int, noise: NoiseSource | None, constant: bool = False) -> Tensor:
    """x [B, T, *E] at the end of `ordered` rows [M, B, T], stage by stage; constant: of equal shapes."""
    batch, time = x.shape[:2]
    first, last = _lives(rows)
    cells, row, sizes = _stages(first, last, constant)
    per_token = {name: value.transpose(0, 1) for name, value in ((cond or {}).get("token") or {}).items()}
    x = x.transpose(0, 1).clone(memory_format=torch.contiguous_format)  # a copy even at batch 1: stages write in it
    if constant:  # the stand-in is token T: clean, so it is held, and behind all others, so its latent goes nowhere
        x = torch.cat([x, torch.zeros_like(x[:1])])
        rows = torch.cat([rows, torch.zeros_like(rows[..., :1])], 2)
        last = torch.cat([last, last.new_zeros(1)])
        per_token = {name: torch.cat([value, value[-1:]]) for name, value in per_token.items()}
    latent = map_state(lambda leaf: leaf[None].repeat(len(x) + 1, *(1,) * leaf.ndim), state)
    static = cache(lambda n: fork((cond or {}).get("static") or {}, n))
    front = _Front(x, torch.zeros_like(x), latent, per_token, static)
    stages = _steps(schedule, rows, cells, row, last, x, eta=eta, order=order)
    for stage in zip(*(part.split(sizes) for part in stages), strict=True):
        _stage(denoiser, front, _Steps(*stage), cond=cond, noise=(noise or Noise()) if eta > 0 else None)
    return front.x[:time].transpose(0, 1).contiguous()


class _Front(NamedTuple):
    """The tensors that stages read and write in place, token first, so that gathering cells copies whole rows."""

    x: Tensor                         # [T, B, *E]
    x0: Tensor                        # [T, B, *E] the estimate at each token's last move
    latent: State                     # [T + 1, B, ...]: the state before token t, as of the last stage that wrote it
    per_token: dict[str, Tensor]      # [T, B, ...] conditioning
    static: Callable[[int], dict]     # conditioning of the whole sequence, once for each of n cells


class _Steps(NamedTuple):
    """Cells (row [N], token [N]) and the factors of their steps [N, B, 1, ...]: known before the first stage."""

    cells: Tensor
    row: Tensor
    level: Tensor    # [N, B]
    still: Tensor    # does the token stay as it is?
    of_x0: Tensor
    of_x: Tensor
    std: Tensor
    forward: Tensor  # factor of the second-order extrapolation


def _steps(schedule: Schedule, rows: Tensor, cells: Tensor, row: Tensor, last: Tensor, like: Tensor, *, eta: float,
           order: int) -> _Steps:
    """The steps of the cells, from each one's row to the next; a token at its last level is held."""
    after = torch.minimum(row + 1, last[cells])
    cells, row, after = cells.to(like.device), row.to(like.device), after.to(like.device)
    counter = torch.arange(1, len(rows), device=rows.device)[:, None, None]
    moved = torch.where(rows[1:] < rows[:-1], counter, 0).cummax(0).values  # 1 + the row of a token's latest move
    latest = torch.where(moved > 0, rows.gather(0, (moved - 1).clamp(min=0)), 0)
    earlier = torch.cat([torch.zeros_like(rows[:1]), latest])
    level, to, before = rows[row, :, cells], rows[after, :, cells], earlier[row, :, cells]
    dtype = torch.promote_types(like.dtype, torch.float32)
    of_x0, of_x, std = (part.to(dtype) for part in coefficients(schedule, level, to, like, eta=eta))
    forward = extrapolation(schedule, level, to, before) if order == 2 else torch.zeros_like(std)
    return _Steps(cells, row, level, (level == to).view(std.shape), of_x0, of_x, std, forward.view(std.shape).to(dtype))


def _stages(first: Tensor, last: Tensor, constant: bool) -> tuple[Tensor, Tensor, list[int]]:
    """All cells in the order of their stages: token [N], row [N], and the number of cells of each, on the CPU."""
    lives = last - first + 1
    token = torch.arange(len(first)).repeat_interleave(lives)
    row = torch.arange(len(token)) - (lives.cumsum(0) - lives - first).repeat_interleave(lives)
    stage = row + token
    order = stage.argsort(stable=True)
    sizes = [size for size in stage.bincount().tolist() if size]
    token, row = token[order], row[order]
    if constant:
        token = pad_sequence(token.split(sizes), batch_first=True, padding_value=len(first))
        row, sizes = pad_sequence(row.split(sizes), batch_first=True).flatten(), [token.shape[1]] * len(sizes)
        token = token.flatten()
    return token, row, sizes


def _stage(denoiser: Denoiser, front: _Front, steps: _Steps, *, cond: Cond | None, noise: NoiseSource | None) -> None:
    """One step of n cells: `advance` with precomputed coefficients. Changes `front`; does not wait for a GPU."""
    cells, (n, batch) = steps.cells, steps.level.shape
    x, before = front.x[cells], front.x0[cells]
    x0, carry = denoiser(_flatten(x), steps.level.reshape(-1, 1),
                         map_state(lambda leaf: leaf[cells].flatten(0, 1), front.latent), _cond(cond, front, cells))
    x0 = x0.view(x.shape)
    after = steps.of_x0 * torch.addcmul(x0, steps.forward, x0 - before) + steps.of_x * x
    if noise is not None:
        sample = torch.arange(batch, device=x.device).repeat(n)
        after = after + steps.std * noise(_each(steps.row, batch), _each(cells, batch), _flatten(x),
                                          sample=sample).view(x.shape)
    front.x.index_copy_(0, cells, torch.where(steps.still, x, after))
    front.x0.index_copy_(0, cells, torch.where(steps.still, before, x0))
    map_state(lambda leaf, new: leaf.index_copy_(0, cells + 1, new.view(n, batch, *leaf.shape[2:])), front.latent,
              carry)


def _flatten(cells: Tensor) -> Tensor:
    """[n, B, *E] -> [n B, 1, *E]: every cell is a sequence of one token."""
    return cells.flatten(0, 1)[:, None]


def _each(counter: Tensor, batch: int) -> Tensor:
    return counter.repeat_interleave(batch)[:, None]


def _cond(cond: Cond | None, front: _Front, cells: Tensor) -> Cond | None:
    """Conditioning of the cells: the token entries of each, and the static entries once for each cell."""
    if not cond:
        return cond
    token = {name: _flatten(value[cells]) for name, value in front.per_token.items()}
    return {**cond, "static": front.static(len(cells)), "token": token}
