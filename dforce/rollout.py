"""Endless rollouts: chunk after chunk from a carried state, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from dforce.denoiser import Cond, Denoiser
from dforce.matrix import check
from dforce.noise import Noise
from dforce.sample import generate
from dforce.schedule import Schedule
from dforce.tree import State


class _Offset(Noise):
    """The noise of one chunk of an endless sequence: rows and tokens go on counting from chunk to chunk."""

    def __init__(self, noise: Noise, rows: int, tokens: int):
        super().__init__(noise.seed)
        self.rows, self.tokens = rows, tokens

    def __call__(self, row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
                 sample: Tensor | None = None) -> Tensor:
        return super().__call__(row + self.rows, token + self.tokens, like, salt=salt, sample=sample)


def rollout(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, state: State, event_shape: tuple[int, ...], *,
            batch: int, cond: Cond | None = None, eta: float = 0.0, order: int = 2, noise: Noise | None = None,
            stabilise_std: float = 0.0, mode: Literal["label", "noise"] = "label") -> Iterator[tuple[Tensor, State]]:
    """Diffusion Forcing, Algorithm 2: sample a chunk by `matrix` [M, T], absorb it, and so on for ever.

    Yields (chunk [B, T, *E], state after it). A finished chunk is absorbed as if its tokens carried noise of standard
    deviation `stabilise_std` >= 0 (data units): mode "label" only says so to the network, "noise" also adds it.
    cond["static"] is used throughout; cond["token"] must hold the T entries of one chunk and is used for every chunk.
    Raises ValueError for a denoiser that is not causal.
    """
    if not denoiser.causal:
        raise ValueError("a rollout carries a state from chunk to chunk, which takes a causal denoiser")
    if mode not in ("label", "noise"):
        raise ValueError(f"mode must be 'label' or 'noise', got {mode!r}")
    matrix = check(matrix, schedule.levels)
    noise, rows, time = noise or Noise(), len(matrix), matrix.shape[1]
    level = schedule.nearest(stabilise_std)
    like = torch.empty(batch, time, *event_shape, device=schedule.alpha.device)
    chunk, start = 0, torch.arange(time, device=like.device)
    while True:
        at = _Offset(noise, (rows + 1) * chunk, time * chunk)
        x = generate(denoiser, schedule, matrix, at(rows, start, like, salt=1), state=state, cond=cond, eta=eta,
                     order=order, noise=at)
        levels = torch.full((batch, time), level, device=x.device)
        shown = x
        if mode == "noise" and level:
            alpha, sigma = schedule(levels, x)
            shown = alpha.to(x.dtype) * x + sigma.to(x.dtype) * at(rows, start, x, salt=2)
        state = denoiser.absorb(shown, levels, state, cond)
        yield x, state
        chunk += 1
