"""Best of n: the control of every search at test time.

A reward of searches is (clean tokens [B, T, *E]) -> [B]; one that is equal for all leaves plain sampling, bit for bit.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.align.rewards.protocol import ask_reward
from dforce.core.denoiser import Cond, Denoiser, fork_cond
from dforce.core.noise import Noise, NoiseSource, shifted
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.core.tree import State, fork

Score = Callable[[Tensor], Any]  # clean tokens [B, T, *E] -> [B]

START_SALT = 2  # stream of the noise that candidates begin in, beside a sampler's own, salt 0


def score(reward: Score, x0: Tensor) -> Tensor:
    """reward(x0) as [B] float64, checked (see `ask_reward`)."""
    return ask_reward(lambda samples, prompts, metadata: reward(samples), x0, [None] * len(x0))


class Best(NamedTuple):
    """x: [B, T, *E], the best of each; reward: [B] its reward; rewards: [n, B] of all."""

    x: Tensor
    reward: Tensor
    rewards: Tensor


@torch.no_grad()
def best_of_n(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, n: int, reward: Score, *,
              state: State = None, cond: Cond | None = None, eta: float = 1.0, order: int = 1,
              noise: NoiseSource | None = None, rows: int | None = None) -> Best:
    """The best of n samples for each start x [B, T, *E]; rows: at most so many runs at a time.

    Candidate 0 begins in x and is what `generate` gives; the others begin in noise of their own.
    """
    if n < 1:
        raise ValueError(f"the best of how many? n must be >= 1, got {n}")
    noise, tokens = noise or Noise(), torch.arange(x.shape[1], device=x.device)
    per_call = max(1, (rows or n * len(x)) // len(x))
    best, at_best, rewards = x, x.new_full((len(x),), -math.inf, dtype=torch.float64), []
    for first in range(0, n, per_call):
        count = min(per_call, n - first)
        member = first * len(x) + torch.arange(count * len(x), device=x.device)
        start = noise(0, tokens, fork(x, count), salt=START_SALT, sample=member)
        if first == 0:
            start[:len(x)] = x
        done = generate(denoiser, schedule, matrix, start, state=None if state is None else fork(state, count),
                        cond=fork_cond(cond, count), eta=eta, order=order, noise=shifted(noise, samples=first * len(x)))
        values = score(reward, done).view(count, -1)
        rewards.append(values)
        top, which = values.max(0)
        better = top > at_best
        winners = done.unflatten(0, (count, -1))[which, torch.arange(len(x), device=x.device)]
        best = torch.where(better.view(-1, *(1,) * (x.ndim - 1)), winners, best)
        at_best = torch.where(better, top, at_best)
    return Best(best, at_best, torch.cat(rewards))
