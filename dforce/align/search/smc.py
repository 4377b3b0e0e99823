"""Steering by particles at test time: sequential Monte Carlo over denoising."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dforce.align.search.best_of_n import START_SALT, Score, score
from dforce.core.denoiser import Cond, Denoiser, fork_cond
from dforce.core.noise import Noise, NoiseSource
from dforce.core.sample import sample
from dforce.core.schedule import Schedule
from dforce.core.step import Std, Step
from dforce.core.tree import State, fork, select

RESAMPLE_SALT = 4  # stream of the resampling, beside the sampler's own


class Particles(NamedTuple):
    """x: [n, B, T, *E]; reward: [n, B]; log_weight: [n, B] what is left of the tilt after the last resampling."""

    x: Tensor
    reward: Tensor
    log_weight: Tensor

    def best(self) -> Tensor:
        """[B, T, *E]: the particle of the highest reward of each."""
        return self.x[self.reward.argmax(0), torch.arange(self.x.shape[1], device=self.x.device)]


class steering:
    """Sequential Monte Carlo over denoising, Feynman-Kac steering (Singhal et al. 2025), a `draw` for one run.

    Rows are n particles of B samples, the particle the slow dimension (`dforce.core.tree.fork`). Before a step
    particles are weighed by a potential of the reward of their x0_hat and, where the effective sample size falls below
    `threshold * n`, resampled (systematically), with memory, state and conditioning. The tilt aimed at is p(x0) exp(lam
    * reward(x0)), at any n in the limit. L_t, the log-potential so far:

        "difference"  lam R_t        "max"  lam max_{s <= t} R_s        "sum"  lam sum_{s <= t} R_s

    every: at which calls to look. Made anew for every run; `finish` weighs what came out.
    """

    def __init__(self, reward: Score, particles: int, lam: float, *,
                 potential: Literal["difference", "max", "sum"] = "difference", every: int = 1,
                 threshold: float = 0.5, noise: NoiseSource | None = None):
        if particles < 1 or every < 1 or lam < 0 or not 0 < threshold <= 1:
            raise ValueError("particles and every must be >= 1, lam >= 0 and threshold in (0, 1], got "
                             f"{particles}, {every}, {lam}, {threshold}")
        if potential not in ("difference", "max", "sum"):
            raise ValueError(f"potential must be 'difference', 'max' or 'sum', got {potential!r}")
        self.reward, self.particles, self.lam, self.potential = reward, particles, lam, potential
        self.every, self.threshold, self.noise = every, threshold, noise or Noise()
        self.calls, self.resampled = 0, 0
        self.total: Tensor | None = None   # [n, B] log-potential so far
        self.weight: Tensor | None = None  # [n, B] log-weight since the last resampling

    @torch.no_grad()
    def __call__(self, step: Step, noise: Tensor) -> tuple[Tensor, Tensor | None]:
        if len(noise) % self.particles:
            raise ValueError(f"{len(noise)} rows are no multiple of {self.particles} particles")
        self.calls += 1
        ancestors = self._ancestors(step.x0) if (self.calls - 1) % self.every == 0 else None
        kernel = step.kernel if ancestors is None else select(step.kernel, ancestors)
        return kernel.sample(noise), ancestors

    def _ancestors(self, x0: Tensor) -> Tensor | None:
        """[n B], or None where nobody is resampled."""
        value = score(self.reward, x0).view(self.particles, -1)
        before = torch.zeros_like(value) if self.total is None else self.total
        weight = torch.zeros_like(value) if self.weight is None else self.weight
        now = self.lam * value
        if self.potential == "sum":
            now = before + now
        elif self.potential == "max" and self.total is not None:
            now = torch.maximum(before, now)
        self.total, self.weight = now, weight + now - before
        share = self.weight.softmax(0)
        poor = 1 / share.square().sum(0) < self.threshold * self.particles * (1 - 1e-9)
        if not bool(poor.any()):
            return None
        self.resampled += 1
        keep = torch.arange(self.particles, device=x0.device)[:, None].expand_as(share)
        which = torch.where(poor, self._systematic(share), keep)
        self.total = self.total.gather(0, which)
        self.weight = torch.where(poor, 0.0, self.weight)
        return (which * share.shape[1] + torch.arange(share.shape[1], device=x0.device)).flatten()

    def _systematic(self, share: Tensor) -> Tensor:
        """Ancestors [n, B] in 0..n-1: as many of each as its share says, rounded by one uniform number a sample."""
        n, batch = share.shape
        drawn = self.noise(self.calls, 0, share.new_empty(batch, 1, 1), salt=RESAMPLE_SALT).view(-1)
        u = 0.5 * (1 + torch.erf(drawn / math.sqrt(2)))
        place = (torch.arange(n, device=share.device)[:, None] + u) / n
        cumulated = share.cumsum(0)
        return torch.searchsorted(cumulated.T.contiguous(), place.T.contiguous()).T.clamp(max=n - 1)

    def finish(self, x: Tensor) -> Particles:
        """The particles x [n B, T, *E] that came out, weighed by lam * reward against what was counted already."""
        value = score(self.reward, x).view(self.particles, -1)
        zero = torch.zeros_like(value)
        before, weight = (zero if part is None else part for part in (self.total, self.weight))
        return Particles(x.unflatten(0, (self.particles, -1)), value, weight + self.lam * value - before)


@torch.no_grad()
def steer(denoiser: Denoiser, schedule: Schedule, matrix: Tensor, x: Tensor, n: int, reward: Score, *, lam: float,
          potential: Literal["difference", "max", "sum"] = "difference", every: int = 1, threshold: float = 0.5,
          state: State = None, cond: Cond | None = None, eta: float = 1.0, order: int = 1, std: Std | None = None,
          noise: NoiseSource | None = None) -> Particles:
    """n particles for each start x [B, T, *E], the first in x, steered as in `steering`. lam = 0 is n plain samples."""
    draw = steering(reward, n, lam, potential=potential, every=every, threshold=threshold, noise=noise)
    start = draw.noise(0, torch.arange(x.shape[1], device=x.device), fork(x, n), salt=START_SALT)
    start[:len(x)] = x
    begin = None if state is None else fork(state, n)
    *_, last = sample(denoiser, schedule, matrix, start, state=begin, cond=fork_cond(cond, n), eta=eta, order=order,
                      std=std, draw=draw, noise=draw.noise)
    return draw.finish(last.x)
