"""Rules for the std of a step, (level, to) [B, T] -> [B, T]: they make a policy of a flow that is sampled as an ODE.

The mean belonging to a std is always that of `dforce.transition`: with eps_hat = (x - alpha x0_hat) / sigma,

    mean = alpha_s x0_hat + sqrt(sigma_s^2 - std^2) eps_hat,

so that a step keeps the marginal law at any std, exactly, if x0_hat is the clean token itself. A network gives its mean
E[x0 | x], and then a step loses variance, as every first-order stochastic step does: of N(0, 1), with `flow_sde` on
even steps of the straight path, .687 is left after 10 steps, .92 after 40, .98 after 200. Flow-GRPO (Liu et al. 2025)
and DanceGRPO (Xue et al. 2025) take an Euler step of an SDE instead. On the straight path, alpha = 1 - s and sigma = s,
it is

    mean = alpha_s x0_hat + (sigma_s - std^2 / (2 sigma)) eps_hat,

first order in std^2: it leaves a variance of sigma_s^2 + std^2 (1 - sigma_s / sigma) + std^4 / (4 sigma^2) where
sigma_s^2 is due, at every step, and near pure noise its std can exceed sigma_s, which ours cannot. With E[x0 | x] this
excess makes up for the loss: .956, 1.02 and 1.02 are left where the first std, infinite by the formula, is the noise
that is left; .931, 1.00 and 1.01 where 1 - s is taken after that step, as Flow-GRPO's code does (10 steps: .7 in place
of .9). For small steps both agree. `published=True` gives a rule of that step (`dforce.core.transition.Euler`),
the last one's noise included.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dforce.core.schedule import Schedule
from dforce.core.transition import Euler

Rule = Callable[[Tensor, Tensor], Tensor | Euler]


def flow_sde(schedule: Schedule, scale: float = 0.7, *, published: bool = False) -> Rule:
    """Flow-GRPO's std, scale sqrt(s / (1 - s)) sqrt(s - s'), s = sigma / (alpha + sigma), s' after; <= sigma(s').

    published: their Euler step, and no bound; of pure noise, 1 - s is taken after the step.
    """
    def spread(s: Tensor, after: Tensor) -> Tensor:
        left = 1 - torch.where((s == 1) & published, after, s)
        return (s / left.clamp(min=1e-12) * (s - after)).sqrt()
    return _rule(schedule, scale, spread, published)


def dance(schedule: Schedule, eta: float = 0.3, *, published: bool = False) -> Rule:
    """DanceGRPO's std, eta sqrt(s - s'), s and s' as in `flow_sde`; capped at sigma(s'), unless published."""
    return _rule(schedule, eta, lambda s, after: (s - after).sqrt(), published)


def cps(schedule: Schedule, scale: float = 0.7) -> Rule:
    """Flow-CPS's std, sigma(s') sin(scale pi / 2) (Wang & Yu 2025, arXiv 2509.05952), scale in (0, 1], as published.

    Coefficients-preserving sampling is DDIM's step on a flow: its mean is the one above, signal and noise add up to
    alpha_s and sigma_s. The code that goes with it calls -|x - mean|^2 / dims the log-probability, std^2 left out, and
    so weighs a step by 2 std^2: ours is the density.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"the scale of coefficients-preserving noise lies in (0, 1], got {scale}")
    return lambda level, to: math.sin(scale * math.pi / 2) * schedule.sigma[to]


def window(rule: Rule, schedule: Schedule, first: int, last: int) -> Rule:
    """`rule` for tokens that leave a level in first..last, 0 elsewhere (MixGRPO, Li et al. 2025)."""
    if not 0 <= first <= last <= schedule.levels:
        raise ValueError(f"a window of levels lies in 0..{schedule.levels}, got {first}..{last}")

    def std(level: Tensor, to: Tensor) -> Tensor | Euler:
        inside, value = (level >= first) & (level <= last), rule(level, to)
        return Euler(value.std.where(inside, 0.0)) if isinstance(value, Euler) else value.where(inside, 0.0)
    return std


def _rule(schedule: Schedule, scale: float, spread: Callable[[Tensor, Tensor], Tensor], published: bool) -> Rule:
    if scale <= 0:
        raise ValueError(f"the scale of the noise must be positive, got {scale}; for an ODE there is no policy")

    def std(level: Tensor, to: Tensor) -> Tensor | Euler:
        size = schedule.alpha + schedule.sigma
        time = schedule.sigma / size
        wide = scale * spread(time[level], time[to]) * size[to]
        return Euler(wide) if published else torch.minimum(wide, schedule.sigma[to])
    return std
