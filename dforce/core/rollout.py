"""Endless rollouts: chunk after chunk from a carried state, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.loss import corrupt
from dforce.core.matrix import check
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.core.tree import State


class Offset(Noise):
    """The noise of one chunk of an endless sequence: rows and tokens go on counting from chunk to chunk."""

    def __init__(self, noise: Noise, rows: int, tokens: int):
        super().__init__(noise.seed)
        self.noise, self.rows, self.tokens = noise, rows, tokens

    def __call__(self, row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
                 sample: Tensor | None = None) -> Tensor:
        return self.noise(row + self.rows, token + self.tokens, like, salt=salt, sample=sample)


class Recent(NamedTuple):
    """A state that can be built anew: with it, the last tokens as they were shown to the network."""

    state: State
    x: Tensor                 # [B, n, *E]
    token: dict[str, Tensor]  # their conditioning, [B, n, ...]

    def with_next(self, state: State, x: Tensor, cond: Cond | None, keep: int) -> Recent:
        """After tokens x [B, T, *E]: the state that they left, and the last `keep` tokens."""
        new = (cond or {}).get("token") or {}
        token = {name: torch.cat([self.token[name], value], 1)[:, -keep:] if self.x.shape[1] else value[:, -keep:]
                 for name, value in new.items()}
        return Recent(state, torch.cat([self.x, x], 1)[:, -keep:], token)


def rollout(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, state: State, event_shape: tuple[int, ...], *,
            batch: int, cond: Cond | Callable[[int], Cond | None] | None = None, eta: float = 0.0, order: int = 2,
            noise: Noise | None = None, stabilise_std: float = 0.0, mode: Literal["label", "noise"] = "label",
            refresh: tuple[int, int] | None = None, first: int = 0) -> Iterator[tuple[Tensor, State]]:
    """Diffusion Forcing, Algorithm 2: sample a chunk by `matrix` [M, T], absorb it, and so on for ever.

    Yields (chunk [B, T, *E], state after it). A finished chunk is absorbed as if its tokens carried noise of standard
    deviation `stabilise_std` >= 0 (data units): mode "label" only says so to the network, "noise" also adds it.
    cond["static"] is used throughout; cond["token"] must hold the T entries of one chunk and is used for every chunk;
    a function of the number of the chunk gives each its own, and is asked when its turn has come (actions fed live).

    refresh=(every, window): each time that `every` more tokens are done the state is built anew, from the initial one
    and the last `window` tokens: no further memory than that, but the latent stays where training has seen it. States
    are then `Recent`; one that is not begins with no tokens to look back to.
    first: the number of chunks done already, so that a rollout goes on from any state that it yielded, bit for bit.
    Raises ValueError for a denoiser that is not causal, and for a refresh that is not a pair of counts >= 1.
    """
    if not denoiser.causal:
        raise ValueError("a rollout carries a state from chunk to chunk, which takes a causal denoiser")
    if mode not in ("label", "noise"):
        raise ValueError(f"mode must be 'label' or 'noise', got {mode!r}")
    if refresh is not None and (len(refresh) != 2 or min(refresh) < 1):
        raise ValueError(f"refresh is (every, window), two numbers of tokens >= 1, got {refresh}")
    matrix = check(matrix, schedule.levels)
    noise, rows, time = noise or Noise(), len(matrix), matrix.shape[1]
    level = schedule.nearest(stabilise_std)
    like = torch.empty(batch, time, *event_shape, device=schedule.alpha.device)
    chunk, start = first, torch.arange(time, device=like.device)
    recent = state if isinstance(state, Recent) else Recent(state, like[:, :0], {})
    while True:
        at, given = Offset(noise, (rows + 1) * chunk, time * chunk), cond(chunk) if callable(cond) else cond
        x = generate(denoiser, schedule, matrix, at(rows, start, like, salt=1), state=recent.state, cond=given, eta=eta,
                     order=order, noise=at)
        levels = torch.full((batch, time), level, device=x.device)
        shown = corrupt(schedule, x, levels, at(rows, start, x, salt=2)) if mode == "noise" and level else x
        recent = recent._replace(state=denoiser.absorb(shown, levels, recent.state, given))
        chunk += 1
        if refresh is not None:
            every, window = refresh
            recent = recent.with_next(recent.state, shown, given, window)
            if chunk * time // every > (chunk - 1) * time // every:
                recent = recent._replace(state=_encoded(denoiser, recent, level, given))
        yield x, recent if refresh is not None else recent.state


def _encoded(denoiser: Denoiser, recent: Recent, level: int, cond: Cond | None) -> State:
    """The state of a sequence that began with the tokens at hand."""
    batch, time = recent.x.shape[:2]
    cond = {**(cond or {}), "token": recent.token}
    levels = torch.full((batch, time), level, device=recent.x.device)
    with torch.no_grad():
        return denoiser.absorb(recent.x, levels, denoiser.init_state(batch, cond), cond)
