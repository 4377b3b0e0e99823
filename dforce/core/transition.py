"""The one Gaussian step under every sampler, likelihood, KL and policy gradient of the library."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from dforce.core.schedule import Schedule


class Gaussian(NamedTuple):
    """A diagonal Gaussian over the next, less noisy, tokens. mean, std: [B, T, *E]; std = 0 is deterministic."""

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor | torch.Generator | None = None) -> Tensor:
        """mean + std * noise. `noise`: standard normal [B, T, *E], or a generator to draw it from."""
        if not isinstance(noise, Tensor):
            noise = torch.randn(self.mean.shape, generator=noise, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-density of x in nats, [B, T], summed over *E (of `mask` [B, T, *E]), where std > 0."""
        moving = self.std > 0
        std = self.std.where(moving, 1.0)
        nats = -0.5 * ((x - self.mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        return _sum_event(nats, moving if mask is None else moving & mask)

    def kl(self, other: "Gaussian", mask: Tensor | None = None) -> Tensor:
        """KL(self || other) in nats per token, [B, T], over the dimensions where self moves."""
        moving = self.std > 0
        std, std_other = self.std.where(moving, 1.0), other.std.where(moving, 1.0)
        gap = (self.mean - other.mean) / std_other
        nats = std_other.log() - std.log() + 0.5 * ((std / std_other) ** 2 + gap**2 - 1)
        return _sum_event(nats, moving if mask is None else moving & mask)

    def dims(self, mask: Tensor | None = None) -> Tensor:
        """The number of dimensions of each token that move, [B, T]; a loss on summed log-probs divides by it."""
        moving = self.std > 0
        return _sum_event(torch.ones_like(self.std), moving if mask is None else moving & mask)


class Euler(NamedTuple):
    """An explicit std, [B, T], of an Euler step of the SDE (Flow-GRPO, Liu et al. 2025; DanceGRPO, Xue et al. 2025).

    Its mean is that of a step without noise, and std^2 / 2 of the score, -eps_hat / sigma_level: to first order in
    std^2 the mean of `transition`. The std may exceed sigma_to, and a step to level 0 has one, too.
    """

    std: Tensor


def _sum_event(values: Tensor, where: Tensor) -> Tensor:
    values = torch.where(where, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return values.flatten(2).sum(2) if values.ndim > 2 else values


def transition(schedule: Schedule, x: Tensor, x0: Tensor, level: Tensor, to: Tensor, *, eta: float = 1.0,
               std: Tensor | float | Euler | None = None, min_std: float = 0.0) -> Gaussian:
    """p(x_to | x_level, x0_hat): DDPM at eta = 1, DDIM at eta = 0 (Song et al. 2021, eq. 12 and 16).

    x, x0: [B, T, *E]; level, to: [B, T] integers with to <= level. With r = sigma_to / sigma_level, a = alpha_level /
    alpha_to and d = 1 - (a r)^2, the fraction of the variance that the step removes::

        mean = alpha_to x0 + r sqrt(1 - eta^2 d) (x - alpha_level x0)        std = eta sigma_to sqrt(d)

    std: [B, T] or a number, replaces eta's std (Flow-SDE); it is clamped to sigma_to, with a warning; an `Euler` has
    another mean. min_std: least std of a step to level 0, which otherwise has no log-probability. Tokens with to ==
    level come back bit for bit. The coefficients are float64; the result has the dtype of `x`, float32 at least.
    """
    of_x0, of_x, spread = coefficients(schedule, level, to, x, eta=eta, std=std, min_std=min_std)
    dtype = torch.promote_types(x.dtype, torch.float32)
    mean = of_x0.to(dtype) * x0 + of_x.to(dtype) * x
    return Gaussian(torch.where((level == to).view(spread.shape), x.to(dtype), mean), spread.to(dtype).expand_as(mean))


def coefficients(schedule: Schedule, level: Tensor, to: Tensor, like: Tensor, *, eta: float = 1.0,
                 std: Tensor | float | Euler | None = None, min_std: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """The factors of x0 and of x in `transition`, and its std: float64, broadcastable to `like`; held: 0, 1, and 0."""
    alpha, sigma = schedule(level, like)
    alpha_s, sigma_s = schedule(to, like)
    still = (level == to).view(sigma.shape)
    sigma_k = sigma.where(~still, 1.0)  # a held token may sit where it is 0
    if std is None and eta == 0:
        spread, carry = torch.zeros_like(sigma), sigma_s / sigma_k
    elif isinstance(std, Euler):
        if min_std > 0:
            raise ValueError("the last step of an Euler rule has a std of its own: leave min_std out")
        spread = std.std.to(sigma_s).view(sigma_s.shape).where(~still, 0.0)
        carry = (sigma_s - spread**2 / (2 * sigma_k)) / sigma_k
    else:
        ratio = alpha / alpha_s.where(~still, 1.0) * sigma_s / sigma_k
        spread = eta * sigma_s * (1 - ratio**2).clamp(min=0).sqrt() if std is None else _explicit_std(
            std, sigma_s, still)
        carry = (sigma_s**2 - spread**2).clamp(min=0).sqrt() / sigma_k
        spread = torch.where(still, 0.0, spread)
    if min_std > 0:
        spread = torch.where((to == 0).view(sigma.shape) & ~still, spread.clamp(min=min_std), spread)
    return torch.where(still, 0.0, alpha_s - carry * alpha), torch.where(still, 1.0, carry), spread


def _explicit_std(std: Tensor | float, sigma_s: Tensor, still: Tensor) -> Tensor:
    wanted = torch.as_tensor(std, dtype=torch.float64, device=sigma_s.device)
    if wanted.ndim:
        wanted = wanted.view(sigma_s.shape)
    if (wanted < 0).any():
        raise ValueError(f"std must be >= 0, got a minimum of {float(wanted.min()):.4g}")
    too_wide = (wanted > sigma_s) & ~still & (sigma_s > 0)
    if too_wide.any():
        warnings.warn(f"std exceeds the noise left at the target level for {int(too_wide.sum())} tokens and was "
                      "clamped to sigma there; pass a smaller std near pure noise", stacklevel=3)
    return torch.minimum(wanted.expand_as(sigma_s), sigma_s)


def renoise(schedule: Schedule, x: Tensor, level: Tensor, to: Tensor, noise: Tensor) -> Tensor:
    """Time travel: a draw from q(x_to | x_level), to >= level [B, T] (Lugmayr et al. 2022); it voids the memory."""
    alpha, sigma = schedule(level, x)
    alpha_s, sigma_s = schedule(to, x)
    still = (level == to).view(sigma.shape)
    scale = alpha_s / alpha.where(~still, 1.0)  # held noise of a flow path: 0 / 0
    spread = (sigma_s**2 - (scale * sigma) ** 2).clamp(min=0).sqrt()
    return torch.where(still, x, scale.to(x.dtype) * x + spread.to(x.dtype) * noise)
