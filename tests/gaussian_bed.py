"""A bed where everything is known: a stationary AR(1) process and its exact denoisers, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser
from dforce.core.schedule import Schedule

RHO = 0.9


def covariance(time: int, rho: float = RHO) -> Tensor:
    """[T, T] of a stationary AR(1) with unit variance."""
    t = torch.arange(time, dtype=torch.float64)
    return rho ** (t[:, None] - t[None]).abs()


def ar1(batch: int, time: int, generator: torch.Generator, rho: float = RHO) -> Tensor:
    """[B, T, 1] draws of the process."""
    noise = torch.randn(batch, time, generator=generator)
    return (noise @ torch.linalg.cholesky(covariance(time, rho)).float().T)[..., None]


class Causal(Denoiser):
    """E[x0_t | noisy tokens up to t] by a Kalman filter. State: mean and variance of the next clean token [B, 2]."""

    causal = recurrent = True

    def __init__(self, schedule: Schedule, rho: float = RHO):
        self.schedule, self.rho = schedule, rho

    def init_state(self, batch, cond=None):
        return torch.tensor([0.0, 1.0]).expand(batch, 2)

    def absorb(self, x, level, state, cond=None):
        return self(x, level, state, cond)[1]

    def __call__(self, x, level, state, cond=None):
        alpha, sigma = (table.float().squeeze(-1) for table in self.schedule(level, x))
        # A finished token is exact, but filters divide: keep a trace of noise.
        noise = sigma.clamp(min=1e-4) ** 2
        mean, var = state.unbind(-1)
        out = []
        for seen, a, n in zip(x[..., 0].unbind(1), alpha.unbind(1), noise.unbind(1), strict=True):
            shared = var * a                                                            # Cov(x0_t, x_t)
            gain = shared / torch.addcmul(n, shared, a)
            filtered = torch.addcmul(mean, gain, torch.addcmul(seen, a, mean, value=-1))
            out.append(filtered)
            mean, var = self.rho * filtered, (var - gain * shared) * self.rho**2 + (1 - self.rho**2)
        return torch.stack(out, 1)[..., None], torch.stack([mean, var], -1)


class NonCausal(Denoiser):
    """E[x0 | all noisy tokens], `time` of them at most. Levels may differ from row to row of the batch."""

    def __init__(self, schedule: Schedule, time: int, rho: float = RHO):
        self.schedule, self.cov = schedule, covariance(time, rho)

    def absorb(self, x, level, state, cond=None):
        raise ValueError("the exact denoiser of whole sequences absorbs none")

    def init_state(self, batch, cond=None):
        return torch.zeros(batch, 0)

    def __call__(self, x, level, state, cond=None):
        unique, back = level.unique(dim=0, return_inverse=True)
        alpha, sigma = self.schedule.alpha[unique], self.schedule.sigma[unique].clamp(min=1e-4)
        cross = self.cov[:x.shape[1], :x.shape[1]] * alpha[:, None, :]                 # Cov(x0, noisy) [U, T, T]
        total = alpha[:, :, None] * cross + torch.diag_embed(sigma**2)
        gain = torch.linalg.solve(total, cross.transpose(1, 2)).transpose(1, 2).float()
        return torch.einsum("bts,bsd->btd", gain[back], x), state
