"""Composition on a plane (Chen et al. 2024, section 4.3): paths that cross an X, and models that remember more or less.

Demonstrations run from the lower left to the upper right, or from the upper left to the lower right. A model that
remembers its past goes on as it began. One that is told only where it is now cannot know, in the middle, which way it
came: it composes halves of both into paths that nobody showed it, V and its reverse.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser
from dforce.core.loss import independent
from dforce.core.matrix import autoregressive
from dforce.core.noise import Noise, seed_of
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.data.batch import Batch

SIDE = 3**0.5     # half a side of the square: positions then have about unit variance, as networks want them
SMOOTH = 4        # sine waves that a path's deviation from its diagonal is made of
DEVIATION = 0.18  # standard deviation of the first of them, a coordinate; wave k has this over k
CORNER = 0.12     # standard deviation of the ends about their corners, a coordinate
KINDS = ("trained", "composed", "neither")
DATA = 3       # stream of randomness, beside those that training draws from


def crossings(n: int, points: int, rng: np.random.Generator) -> np.ndarray:
    """n demonstrations [n, points, 2] on the square [-SIDE, SIDE]^2, each family with probability one half.

    A diagonal from left to right at constant speed; ends N(corner, CORNER^2), and in between sines that vanish at both
    ends.
    """
    time = np.linspace(0.0, 1.0, points)
    side = rng.choice([-1.0, 1.0], size=n)
    corners = SIDE * np.array([[-1.0, 1.0], [1.0, -1.0]]) * np.stack([np.ones(n), side], 1)[:, None]  # [n, 2 ends, 2]
    ends = corners + CORNER * rng.standard_normal((n, 2, 2))
    wave = np.arange(1, SMOOTH + 1)
    weight = DEVIATION / wave[:, None] * rng.standard_normal((n, SMOOTH, 2))
    line = ends[:, :1] + time[:, None] * (ends[:, 1:] - ends[:, :1])
    return line + np.einsum("tk,nkd->ntd", np.sin(np.pi * np.outer(time, wave)), weight)


def kinds(paths: np.ndarray, *, tolerance: float = 0.7) -> list[str]:
    """What each path [N, P, 2] is: "trained", from a left corner through the middle to the opposite corner;
    "composed", to the other corner on the right, which no demonstration does; or "neither".

    Both start and end within `tolerance` of a corner, and stay within it of the half diagonals between them.
    """
    begin, end = np.sign(paths[:, 0, 1]), np.sign(paths[:, -1, 1])
    x, y = paths[..., 0], paths[..., 1]
    # Left of the middle a path belongs on the half diagonal it began on, right of it on the one it ends on.
    height = np.abs(x) * np.where(x < 0, begin[:, None], end[:, None])
    off = np.abs(y - height).max(axis=1) / np.sqrt(2.0)
    left = np.hypot(paths[:, 0, 0] + SIDE, paths[:, 0, 1] - SIDE * begin)
    right = np.hypot(paths[:, -1, 0] - SIDE, paths[:, -1, 1] - SIDE * end)
    whole = (np.maximum(np.maximum(off, left), right) <= tolerance) & (begin != 0) & (end != 0)
    return [KINDS[2] if not good else KINDS[0] if a != b else KINDS[1]
            for good, a, b in zip(whole.tolist(), begin.tolist(), end.tolist(), strict=True)]


def windows(*, tokens: int, stack: int, batch: int, seed: int = 0) -> Callable[[int], Batch]:
    """step -> batch of parts of fresh demonstrations, a function of (seed, step): x [B, tokens, 2 stack].

    A demonstration is a position and tokens * stack more. A quarter of the windows show all of it; the others
    begin at any token, what is missing at their end being masked. cond["static"]["start"] [B, 2] is the
    position before the first token.
    """
    def batch_at(step: int) -> Batch:
        rng = np.random.default_rng([seed, step, DATA])
        paths = crossings(batch, tokens * stack + 1, rng)
        first = np.where(np.arange(batch) % 4, rng.integers(tokens, size=batch), 0)
        shown = first[:, None] + np.arange(tokens)
        token = np.minimum(shown, tokens - 1)[..., None] * stack + 1 + np.arange(stack)
        row = np.arange(batch)
        x = torch.from_numpy(paths[row[:, None, None], token].reshape(batch, tokens, 2 * stack)).float()
        start = torch.from_numpy(paths[row, first * stack]).float()
        return Batch(x, torch.from_numpy(shown < tokens), {"static": {"start": start}},
                     torch.ones(batch, dtype=torch.bool))

    return batch_at


def levels(schedule: Schedule, shape: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """Levels to train at, [B, T]: uniform ones in the first half of the sequences; in the others one of 40 evenly
    spaced in log-SNR, or the clean one.

    `walk` shows a network nothing but a clean past, which uniform levels of a linear schedule hardly ever do; and at
    their high noise it is decided which way a path goes on.
    """
    uniform, grid = independent(schedule, shape, generator), schedule.grid(40)
    spaced = grid[torch.randint(len(grid), shape, generator=generator)]
    return torch.where(torch.arange(shape[0])[:, None] < shape[0] // 2, uniform, spaced)


@torch.no_grad()
def walk(denoiser: Denoiser, schedule: Schedule, starts: Tensor, *, tokens: int, every: int = 1,
         memory: int | None = None, steps: int = 20, seed: int = 0) -> Tensor:
    """Paths [B, 1 + tokens * stack, 2] from `starts` [B, 2], made `every` tokens at a time, each plan from what is
    remembered then: the last `memory` tokens and the position before them; None is all of them.

    Next-token prediction (`steps` a token, second order), which is exact for a causal denoiser; others are refused by
    ValueError. A plan is as long as what is kept of it: later tokens would change nothing.
    """
    if not denoiser.causal:
        raise ValueError("walk() absorbs what it remembers, which takes a causal denoiser")
    if every < 1 or (memory is not None and memory < 0):
        raise ValueError(f"want every >= 1 token and memory >= 0 tokens or None, got {every} and {memory}")
    width = int(torch.Size(denoiser.net.event_shape).numel())  # type: ignore[attr-defined]
    past = starts.new_empty(len(starts), 0, width)
    while (done := past.shape[1]) < tokens:
        known = done if memory is None else min(memory, done)
        before = past[:, done - known - 1, -2:] if known < done else starts
        state = denoiser.init_state(len(starts), {"static": {"start": before}})
        if known:
            recent = past[:, done - known:]
            state = denoiser.absorb(recent, recent.new_zeros(recent.shape[:2], dtype=torch.long), state)
        plan, noise = min(every, tokens - done), Noise(seed_of(seed, done))
        x = noise(-1, torch.arange(plan), starts.new_empty(len(starts), plan, width))
        matrix = autoregressive(schedule.grid(steps), plan)
        past = torch.cat([past, generate(denoiser, schedule, matrix, x, state=state)], 1)
    return torch.cat([starts[:, None], past.reshape(len(starts), -1, 2)], 1)
