"""Search at test time, no training and no gradient: best of n, Sampling Demon. `dforce.align.search.smc` has the
particles.

A reward here is a function of clean tokens, [B, T, *E] -> [B], that need not be differentiable. What is drawn is
counted by a `Noise`; a reward that does not tell candidates apart leaves plain sampling, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dforce.align.rewards.protocol import ask_reward
from dforce.core.denoiser import Cond, Denoiser, fork_cond
from dforce.core.noise import Noise, NoiseSource, shifted
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.core.step import Step
from dforce.core.tree import State, fork

Score = Callable[[Tensor], Any]  # clean tokens [B, T, *E] -> [B]

START_SALT, DEMON_SALT = 2, 3  # streams beside a sampler's own, salt 0


def score(reward: Score, x0: Tensor) -> Tensor:
    """reward(x0) as [B] float64, checked (see `ask_reward`)."""
    return ask_reward(lambda samples, prompts, metadata: reward(samples), x0, [None] * len(x0))


def descend(schedule: Schedule, level: Tensor, steps: int) -> Tensor:
    """[steps + 1, B, T]: every token from its own `level` [B, T] down to 0, evenly in log-SNR, a matrix of its own."""
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    table = schedule.log_snr(torch.arange(1, schedule.levels + 1, device=level.device))    # of levels 1..K, falling
    share = torch.arange(steps, device=level.device, dtype=table.dtype).view(-1, 1, 1) / steps
    wanted = torch.lerp(table[level.clamp(min=1) - 1].expand(steps, *level.shape), table[0], share)
    below = (len(table) - torch.searchsorted(table.flip(0), wanted.contiguous())).clamp(1, schedule.levels)
    rows = torch.cat([level[None], below[1:], torch.zeros_like(level)[None]])
    return rows.cummin(0).values


class Best(NamedTuple):
    """x: [B, T, *E], the best of each; reward: [B] its reward; rewards: [n, B] of all."""

    x: Tensor
    reward: Tensor
    rewards: Tensor


@torch.no_grad()
def best_of_n(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, n: int, reward: Score, *,
              state: State = None, cond: Cond | None = None, eta: float = 1.0, order: int = 1,
              noise: NoiseSource | None = None, rows: int | None = None) -> Best:
    """The best of n samples for each start x [B, T, *E]: n rewards and n runs a sample, the control of every method.

    Candidate 0 begins in x and is what `generate` gives; the others begin in noise of their own. rows: at most so many
    runs at a time. Raises ValueError for n < 1, RewardError for a reward that fails.
    """
    if n < 1:
        raise ValueError(f"the best of how many? n must be >= 1, got {n}")
    noise, tokens = noise or Noise(), torch.arange(x.shape[1], device=x.device)
    per_call = max(1, (rows or n * len(x)) // len(x))
    best, at_best, found = x, x.new_full((len(x),), -math.inf, dtype=torch.float64), []
    for first in range(0, n, per_call):
        count = min(per_call, n - first)
        member = first * len(x) + torch.arange(count * len(x), device=x.device)
        start = noise(0, tokens, fork(x, count), salt=START_SALT, sample=member)
        if first == 0:
            start[:len(x)] = x
        done = generate(denoiser, schedule, matrix, start, state=None if state is None else fork(state, count),
                        cond=fork_cond(cond, count), eta=eta, order=order, noise=shifted(noise, samples=first * len(x)))
        values = score(reward, done).view(count, -1)
        found.append(values)
        top, which = values.max(0)
        better = top > at_best
        winners = done.unflatten(0, (count, -1))[which, torch.arange(len(x), device=x.device)]
        best = torch.where(better.view(-1, *(1,) * (x.ndim - 1)), winners, best)
        at_best = torch.where(better, top, at_best)
    return Best(best, at_best, torch.cat(found))


class demon:
    """Sampling Demon (Yeh et al. 2024), a `draw` for `dforce.sample`: of K candidate noises the better are mixed.

    Each candidate step is finished by `rest` deterministic second-order steps (1: the estimate x0_hat alone) and
    scored. With rewards R_k the noise is z = sum_k w_k z_k, brought back to the length of typical noise, sqrt(D):

        weights="tanh"  w_k = tanh((R_k - mean R) / tau)        weights="boltzmann"  w_k = softmax(R / tau)_k

    tau None: the std of the rewards. D counts the dimensions that move of a whole sequence (`sphere="sequence"`) or of
    each token ("token"); None leaves the length: where D is small, such as 2, typical noise is no sphere (the length
    varies by 1 / sqrt(2 D)). Candidate 0 is the sampler's own noise, and what remains where all K rewards are equal.
    Costs K rewards, and K * rest network calls of the batch, a step; steps without noise ask nothing.

    state, cond: as given to `sample` (state None: the denoiser's own beginning). `queries` counts rewards a sample.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, reward: Score, draws: int = 16, *, rest: int = 5,
                 weights: Literal["tanh", "boltzmann"] = "tanh", tau: float | None = None,
                 sphere: Literal["sequence", "token"] | None = "sequence", state: State = None,
                 cond: Cond | None = None, noise: NoiseSource | None = None):
        if draws < 1 or rest < 1 or (tau is not None and tau <= 0):
            raise ValueError(f"draws and rest must be >= 1 and tau positive, got {draws}, {rest}, {tau}")
        if weights not in ("tanh", "boltzmann") or sphere not in ("sequence", "token", None):
            raise ValueError(f"weights is 'tanh' or 'boltzmann', sphere 'sequence', 'token' or None; got {weights!r}, "
                             f"{sphere!r}")
        self.denoiser, self.schedule, self.reward, self.draws, self.rest = denoiser, schedule, reward, draws, rest
        self.weights, self.tau, self.sphere, self.state, self.cond = weights, tau, sphere, state, cond
        self.noise, self.queries = noise or Noise(), 0

    @torch.no_grad()
    def __call__(self, step: Step, noise: Tensor) -> tuple[Tensor, None]:
        moving = step.kernel.std > 0
        if not bool(moving.any()) or self.draws == 1:
            return step.kernel.sample(noise), None
        return step.kernel.sample(self.choose(step, noise)), None

    def choose(self, step: Step, noise: Tensor) -> Tensor:
        """The noise [B, T, *E] of this step."""
        batch, candidates = len(noise), fork(noise, self.draws)
        row, token = step.level.sum(1, keepdim=True), torch.arange(noise.shape[1], device=noise.device)
        member = torch.arange(len(candidates), device=noise.device)
        fresh = self.noise(fork(row, self.draws), token, candidates, salt=DEMON_SALT, sample=member)
        candidates[batch:] = fresh[batch:]
        kernel = step.kernel._replace(mean=fork(step.kernel.mean, self.draws), std=fork(step.kernel.std, self.draws))
        reward = score(self.reward, self.finish(kernel.sample(candidates), fork(step.to, self.draws))).view(-1, batch)
        self.queries += self.draws
        z = candidates.unflatten(0, (self.draws, batch))
        weight = self._weights(reward).view(*reward.shape, *(1,) * (noise.ndim - 1)).to(z.dtype)
        mixed = self._lengthened((weight * z).sum(0), weight, step.kernel.std > 0)
        told = (reward.amax(0) > reward.amin(0)).view(-1, *(1,) * (noise.ndim - 1))
        return torch.where(told, mixed, noise)

    def finish(self, x: Tensor, level: Tensor) -> Tensor:
        """Clean tokens from candidates x [K B, T, *E] at `level`, by the deterministic sampler."""
        state = None if self.state is None else fork(self.state, self.draws)
        return generate(self.denoiser, self.schedule, descend(self.schedule, level, self.rest), x, state=state,
                        cond=fork_cond(self.cond, self.draws))

    def _weights(self, reward: Tensor) -> Tensor:
        """[K, B] of rewards [K, B]."""
        tiny = torch.finfo(reward.dtype).tiny
        tau = reward.std(0, correction=0).clamp(min=tiny) if self.tau is None else self.tau
        if self.weights == "boltzmann":
            return torch.softmax(reward / tau, 0)
        return torch.tanh((reward - reward.mean(0)) / tau)

    def _lengthened(self, z: Tensor, weight: Tensor, moving: Tensor) -> Tensor:
        """A weighted sum of noises, as long as noise is."""
        if self.sphere is None:  # the variance of typical noise, for weights that do not look at it
            return z / weight.square().sum(0).sqrt().clamp(min=torch.finfo(z.dtype).tiny)
        over = tuple(range(2 if self.sphere == "token" else 1, z.ndim))
        square = (z.square() * moving).sum(over, keepdim=True).clamp(min=torch.finfo(z.dtype).tiny)
        return z * (moving.sum(over, keepdim=True) / square).sqrt()
