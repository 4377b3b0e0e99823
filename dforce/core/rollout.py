"""Endless rollouts: chunk after chunk from a carried state, in constant memory."""

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.loss import corrupt
from dforce.core.matrix import checked_matrix
from dforce.core.noise import Noise, NoiseSource, shifted
from dforce.core.sample import Descent, generate
from dforce.core.schedule import Schedule
from dforce.core.tree import State


class Recent(NamedTuple):
    """A state that can be built anew: with it, the last n tokens as they were shown to the network."""

    state: State
    x: Tensor                 # [B, n, *E]
    token: dict[str, Tensor]  # conditioning of these tokens, [B, n, ...]

    def with_next(self, state: State, x: Tensor, cond: Cond | None, keep: int) -> "Recent":
        """The record after tokens x [B, T, *E], which led to `state`: the last `keep` tokens remain."""
        new = (cond or {}).get("token") or {}
        token = {name: torch.cat([self.token[name], value], 1)[:, -keep:] if self.x.shape[1] else value[:, -keep:]
                 for name, value in new.items()}
        return Recent(state, torch.cat([self.x, x], 1)[:, -keep:], token)


def rollout(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, state: State, event_shape: tuple[int, ...], *,
            batch: int, cond: Cond | Callable[[int], Cond | None] | None = None, eta: float = 0.0, order: int = 2,
            noise: NoiseSource | None = None, stabilise_std: float = 0.0, mode: Literal["label", "noise"] = "label",
            refresh: tuple[int, int] | None = None, first: int = 0) -> Iterator[tuple[Tensor, State]]:
    """Diffusion Forcing, Algorithm 2: sample a chunk by `matrix` [M, T], absorb it, and so on without end.

    Yields (chunk [B, T, *E], state after it), from which a rollout goes on, bit for bit, with `first` chunks done.
    cond: "static" entries serve all chunks; "token" entries are the T of every chunk; a function of the chunk's number
    gives each its own, when it is sampled (live actions).
    stabilise_std: >= 0, in data units; a finished chunk is absorbed as if its tokens carried noise of that std.
    mode: "label" only tells the network of that noise, "noise" also adds it.
    refresh: (every, window): after each `every` tokens the state is built anew from the initial one and the last
    `window` tokens: older memory is lost, but the latent stays where training has seen it. States are then `Recent`.
    """
    _check(denoiser, mode, refresh)
    matrix, noise = checked_matrix(matrix, schedule.levels), noise or Noise()
    if not callable(cond):
        _checked_cond(cond, batch, matrix.shape[1])
    (rows, time), level = matrix.shape, schedule.nearest(stabilise_std)
    like = torch.empty(batch, time, *event_shape, device=schedule.alpha.device)
    tokens, levels = torch.arange(time, device=like.device), torch.full((batch, time), level, device=like.device)
    recent, chunk = state if isinstance(state, Recent) else Recent(state, like[:, :0], {}), first
    falls = time == 1 and matrix.ndim == 2 and eta == 0 and bool((matrix.diff(dim=0) < 0).all())
    descend = Descent(schedule, matrix[:, 0].to(like.device), order) if falls else None
    while True:
        here = shifted(noise, rows=(rows + 1) * chunk, tokens=time * chunk)
        given = _checked_cond(cond(chunk), batch, time) if callable(cond) else cond
        x = here(rows, tokens, like, salt=1)
        x = descend(denoiser, x, recent.state, given) if descend else generate(
            denoiser, schedule, matrix, x, state=recent.state, cond=given, eta=eta, order=order, noise=here)
        shown = corrupt(schedule, x, levels, here(rows, tokens, x, salt=2)) if mode == "noise" and level else x
        recent = recent._replace(state=denoiser.absorb(shown, levels, recent.state, given))
        chunk += 1
        if refresh is not None:
            every, window = refresh
            recent = recent.with_next(recent.state, shown, given, window)
            if chunk * time // every > (chunk - 1) * time // every:
                recent = recent._replace(state=_encoded(denoiser, recent, level, given))
        yield x, recent if refresh is not None else recent.state


def _check(denoiser: Denoiser, mode: str, refresh: tuple[int, int] | None) -> None:
    if not denoiser.causal:
        raise ValueError("a rollout carries a state from chunk to chunk, which takes a causal denoiser")
    if mode not in ("label", "noise"):
        raise ValueError(f"mode must be 'label' or 'noise', got {mode!r}")
    if refresh is not None and (len(refresh) != 2 or min(refresh) < 1):
        raise ValueError(f"refresh is (every, window), two numbers of tokens >= 1, got {refresh}")


def _checked_cond(cond: Cond | None, batch: int, time: int) -> Cond | None:
    for kind, shape in (("static", [batch]), ("token", [batch, time])):
        for name, value in ((cond or {}).get(kind) or {}).items():
            if [*value.shape[:len(shape)]] != shape:
                raise ValueError(f"cond[{kind!r}][{name!r}] must begin with {shape}, got {[*value.shape]}")
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"cond[{kind!r}][{name!r}] holds numbers that are not finite")
    return cond


def _encoded(denoiser: Denoiser, recent: Recent, level: int, cond: Cond | None) -> State:
    """The state of a sequence that begins with the recent tokens."""
    batch, time = recent.x.shape[:2]
    cond = {**(cond or {}), "token": recent.token}
    levels = torch.full((batch, time), level, device=recent.x.device)
    with torch.no_grad():
        return denoiser.absorb(recent.x, levels, denoiser.init_state(batch, cond), cond)
