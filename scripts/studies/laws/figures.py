"""What a law is judged by: figures of a rollout with their bootstrap intervals, and of a joint covariance."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser
from dforce.core.matrix import autoregressive, pyramid
from dforce.core.noise import Noise
from dforce.core.rollout import rollout
from dforce.core.sample import generate
from dforce.core.schedule import Schedule

sys.path.append(str(Path(__file__).resolve().parents[3]))
from tests.gaussian_bed import RHO, covariance

INNOVATION = (1 - RHO**2) ** 0.5
TRUE = {"lag-1": RHO, "innovation std": INNOVATION, "std": 1.0, "mean": 0.0}
BOOTSTRAPS = 2000


def rolled(denoiser: Denoiser, schedule: Schedule, *, steps: int, order: int, eta: float, tokens: int, batch: int,
           seed: int, spacing: Any = "log_snr", chunk: int = 32) -> Tensor:
    """[B, tokens] of an autoregressive rollout."""
    matrix = autoregressive(schedule.grid(steps, spacing), chunk)
    run = rollout(denoiser, schedule, matrix, denoiser.init_state(batch), (1,), batch=batch, order=order, eta=eta,
                  noise=Noise(seed))
    return torch.cat([x for x, _ in itertools.islice(run, -(-tokens // chunk))], 1)[:, :tokens, 0]


def moments(x: Tensor) -> np.ndarray:
    """x: [B, T] -> means over time, a row a sequence, from which `figures` makes its numbers: [B, 6]."""
    x = x.double()
    before, after = x[:, :-1], x[:, 1:]
    noise = after - RHO * before
    columns = before * after, before**2, noise, noise**2, x, x**2
    return torch.stack([column.mean(1) for column in columns], 1).numpy()


def figures(means: np.ndarray) -> np.ndarray:
    """moments [B, 6] of one network's sequences -> lag-1 correlation, innovation std, std and mean, as in TRUE: [4].

    Of one network: each has a mean of its own, and taken together they would seem to spread wider than any does.
    """
    product, square, noise, noise2, x, x2 = means.mean(0)
    return np.stack([product / square, np.sqrt(noise2 - noise**2), np.sqrt(x2 - x**2), x])


def interval(seeds: list[np.ndarray]) -> np.ndarray:
    """95% percentile bootstrap of the mean of `figures` over seeds, seeds drawn first, then sequences: a list of
    [B, 6] -> [2, 4]."""
    rng, drawn = np.random.default_rng(0), []
    for _ in range(BOOTSTRAPS):
        runs = [seeds[i] for i in rng.integers(len(seeds), size=len(seeds))]
        drawn.append(np.mean([figures(run[rng.integers(len(run), size=len(run))]) for run in runs], axis=0))
    return np.quantile(drawn, (0.025, 0.975), axis=0)


def whitened(batch: int, time: int, seed: int = 0) -> Tensor:
    """[B, T, 1] normal draws whose sample mean is 0 and sample covariance 1: what a linear sampler makes of them is
    its law without an error of sampling, and a nearly linear one's nearly so."""
    z = torch.randn(batch, time, generator=torch.Generator().manual_seed(seed)).double()
    z = z - z.mean(0)
    return (z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T))).T).float()[..., None]


def joint(denoiser: Denoiser, schedule: Schedule, *, steps: int, delay: int, time: int = 16, batch: int = 2048,
          order: int = 2, seed: int = 0) -> dict[str, float]:
    """The law of `time` tokens sampled down a pyramid, against that of the process."""
    x = generate(denoiser, schedule, pyramid(schedule.grid(steps), time, delay), whitened(batch, time, seed),
                 order=order)[..., 0].double()
    cov = torch.cov(x.T)
    noise = cov.diagonal()[1:] + RHO**2 * cov.diagonal()[:-1] - 2 * RHO * cov.diagonal(1)
    values = {"std at token 7": cov[7, 7].sqrt(), "std at the last token": cov[-1, -1].sqrt(),
             "innovation std": noise.mean().sqrt(), "largest covariance error": (cov - covariance(time)).abs().max(),
             "largest mean error": x.mean(0).abs().max()}
    return {name: float(value) for name, value in values.items()}
