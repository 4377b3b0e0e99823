"""Baselines of Diffusion Forcing on the same network and data, each in its best form.

Two-call teacher forcing predicts a frame from the state after clean frames; next-frame regression predicts its mean
at once. Full-sequence diffusion has all frames of a window at one level, and is rolled out by sliding the window.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dforce.core.denoiser import Cond, Denoiser, Precond
from dforce.core.loss import Weight, corrupt, min_snr
from dforce.core.matrix import full_sequence
from dforce.core.noise import Noise, NoiseSource, shifted
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.core.tree import State, map_state
from dforce.guidance.inpaint import inpaint

BUILDABLE = ("TwoCall", "next_frame_regression")  # by name, in a configuration


class TwoCall(nn.Module):
    """objective(batch, generator) -> (loss, logs): every token predicted from the state after its clean past.

    levels: "random" shows the noisy token at a uniform level 1..K and weighs its x0 error by `weight` (default
    min-SNR). "last" shows x = 0 at level K, unweighted, so that the answer is the conditional mean: next-frame
    regression. The first call takes the clean tokens one by one, for the state before each; the second all tokens in
    one batch.
    """

    def __init__(self, denoiser: Precond, schedule: Schedule, *, levels: Literal["random", "last"] = "random",
                 weight: Weight | None = None):
        super().__init__()
        if levels not in ("random", "last"):
            raise ValueError(f"levels must be 'random' or 'last', got {levels!r}")
        if not denoiser.causal:
            raise ValueError("teacher forcing carries a state from token to token, which takes a causal denoiser")
        self.denoiser, self.schedule, self.levels, self.weight = denoiser, schedule, levels, weight or min_snr()

    def forward(self, batch: Any, generator: torch.Generator | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        x0, (size, time) = batch.x, batch.x.shape[:2]
        before = states_before(self.denoiser, x0, batch.cond)
        cond = {**batch.cond, "token": {name: value.flatten(0, 1)[:, None]
                                        for name, value in (batch.cond.get("token") or {}).items()},
                "static": {name: value.repeat_interleave(time, 0)
                           for name, value in (batch.cond.get("static") or {}).items()}}
        tokens = x0.flatten(0, 1)[:, None]
        if self.levels == "last":
            level = torch.full((size * time, 1), self.schedule.levels, device=x0.device)
            noisy, factor = torch.zeros_like(tokens), torch.ones(size, time, device=x0.device)
        else:
            device = generator.device if generator is not None else None
            level = torch.randint(1, self.schedule.levels + 1, (size * time, 1), generator=generator,
                                  device=device).to(x0.device)
            noisy = corrupt(self.schedule, tokens, level, generator)
            factor = self.weight(self.schedule.log_snr(level)).to(x0.dtype).view(size, time)
        x0_hat, _ = self.denoiser(noisy, level, before, cond)
        error = (x0_hat.float() - tokens.float()).square().flatten(1).mean(1).view(size, time) * factor
        loss = (error * batch.mask).sum() / batch.mask.sum().clamp(min=1)
        return loss, {"loss": loss.detach()}


def next_frame_regression(denoiser: Precond, schedule: Schedule) -> TwoCall:
    """Next-frame regression: `TwoCall` with levels="last", for configurations."""
    return TwoCall(denoiser, schedule, levels="last")


def states_before(denoiser: Precond, x0: Tensor, cond: Cond | None) -> State:
    """States, with gradient, before every token of clean x0 [B, T, *E]: leaves [B * T, ...], rows (b, t) in order."""
    state, states = denoiser.init_state(len(x0), cond), []
    clean = torch.zeros(len(x0), 1, dtype=torch.long, device=x0.device)
    token = (cond or {}).get("token") or {}
    for t in range(x0.shape[1]):
        states.append(state)
        if t + 1 < x0.shape[1]:
            here = {**(cond or {}), "token": {name: value[:, t:t + 1] for name, value in token.items()}}
            state = denoiser.remember(x0[:, t:t + 1], clean, state, here)
    return map_state(lambda *leaves: torch.stack(leaves, 1).flatten(0, 1), *states)


class WindowPast(NamedTuple):
    """What a sliding window knows of its past: tokens x [B, n, *E] and their conditioning [B, n, ...]."""

    x: Tensor
    token: dict[str, Tensor]


def sliding_window(denoiser: Denoiser, schedule: Schedule, grid: Tensor, past: WindowPast, *, new: int, keep: int,
                   cond: Cond | Callable[[int], Cond | None] | None = None, eta: float = 0.0, order: int = 2,
                   noise: NoiseSource | None = None, first: int = 0) -> Iterator[tuple[Tensor, WindowPast]]:
    """Endless full-sequence diffusion: `new` tokens at a time, given the last `keep` of them, and the next past.

    All tokens of a window fall from level to level of `grid` [S + 1] together. The known ones are noised along the path
    of their clean values (replacement, Ho et al. 2022, "Video Diffusion Models", section 3.1), as in training.
    cond, first: as in `dforce.core.rollout.rollout`. Yields (new tokens [B, new, *E], the past of the next window).
    """
    if new < 1 or keep < 1:
        raise ValueError(f"a window slides by at least one token and keeps one, got new={new}, keep={keep}")
    noise, chunk = noise or Noise(), first
    past = WindowPast(past.x[:, -keep:], {name: value[:, -keep:] for name, value in past.token.items()})
    while True:
        given = cond(chunk) if callable(cond) else cond
        token = {name: torch.cat([past.token[name], value], 1) if past.x.shape[1] else value
                 for name, value in ((given or {}).get("token") or {}).items()}
        whole: Cond = {**(given or {}), "token": token}
        size, old = past.x.shape[:2]
        matrix = full_sequence(grid, old + new)
        # Counters go on from window to window, with room for the longest: windows share no noise
        at = shifted(noise, rows=(len(matrix) + 1) * chunk, tokens=(keep + new) * chunk)
        like = torch.cat([past.x, past.x.new_empty(size, new, *past.x.shape[2:])], 1)
        known = torch.cat([past.x, torch.zeros_like(like[:, old:])], 1)
        mask = torch.zeros_like(like, dtype=torch.bool)
        mask[:, :old] = True
        start = at(len(matrix), torch.arange(old + new, device=like.device), like, salt=1)
        x = generate(inpaint(denoiser, known, mask), schedule, matrix, start, cond=whole, eta=eta,
                     order=order, noise=at)
        x = x[:, old:]
        chunk += 1
        past = WindowPast(torch.cat([past.x, x], 1)[:, -keep:],
                          {name: value[:, -keep:] for name, value in token.items()})
        yield x, past
