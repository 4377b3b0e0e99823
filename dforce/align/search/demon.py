"""Sampling Demon: the noise of a step is mixed of candidates by what their finished samples would earn."""

from typing import Literal

import torch
from torch import Tensor

from dforce.align.search.best_of_n import Score, score
from dforce.core.denoiser import Cond, Denoiser, fork_cond
from dforce.core.noise import Noise, NoiseSource
from dforce.core.sample import generate
from dforce.core.schedule import Schedule
from dforce.core.step import Step
from dforce.core.tree import State, fork

DEMON_SALT = 3  # stream of the candidates, beside a sampler's own, salt 0


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


class demon:
    """Sampling Demon (Yeh et al. 2024), a `draw` for `dforce.sample`: of K candidate noises the better are mixed.

    Each candidate step is finished by `rest` deterministic second-order steps (1: the estimate x0_hat alone) and
    scored. With rewards R_k the noise is z = sum_k w_k z_k, brought back to the length of typical noise, sqrt(D):

        weights="tanh"  w_k = tanh((R_k - mean R) / tau)        weights="boltzmann"  w_k = softmax(R / tau)_k

    tau None: the std of the rewards. D counts the dimensions that move of a whole sequence (`sphere="sequence"`) or of
    each token ("token"); None leaves the length, for small D. Candidate 0 is the sampler's own noise, and what remains
    where all K rewards are equal. Costs K rewards and K * rest network calls a step. state, cond: as given to `sample`.
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
        differs = (reward.amax(0) > reward.amin(0)).view(-1, *(1,) * (noise.ndim - 1))
        return torch.where(differs, mixed, noise)

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
