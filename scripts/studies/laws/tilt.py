"""How far guidance is from p(x0) exp(energy) where that is known: python scripts/studies/laws/tilt.py [--out FILE]

An AR(1) process (rho .8, 24 tokens, std 1) and its exact causal denoiser; the energy is log N(goal; x at some tokens,
.2^2), so that the posterior is a Gaussian in closed form. Errors are the largest over the tokens of the mean, and over
their pairs of the covariance, of 100 samples: 20 second-order steps, delay 5, from noise whose sample mean is 0 and
whose sample covariance is 1. `exact_tilt` is `monte_carlo` with branch posterior, futures sequential, lookahead 10,
reduce gaussian, 16 draws.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dforce.core.matrix import pyramid
from dforce.core.noise import Noise
from dforce.core.sample import generate
from dforce.core.schedule import linear
from dforce.guidance.energy import guided
from dforce.guidance.monte_carlo import exact_tilt, monte_carlo
from dforce.report.rows import Row, make_row, write_results
from dforce.report.table import markdown_table
from dforce.runs.folder import environment, results_header

sys.path.append(str(Path(__file__).resolve().parents[3]))
from tests.gaussian_bed import Causal, covariance

RHO, TIME, STD, SAMPLES, STEPS, DELAY = 0.8, 24, 0.2, 100, 20, 5
GOALS = {"last token": ([23], [-1.5]), "two near tokens": ([21, 23], [1.0, -1.5])}
WAYS: dict[str, Any] = {"guided": guided, "monte_carlo, defaults, 4 draws": partial(monte_carlo, draws=4),
                        "monte_carlo, defaults, 16 draws": partial(monte_carlo, draws=16), "exact_tilt": exact_tilt}


class Goals:
    """log N(goal; x at the tokens, STD^2)."""

    std = STD

    def __init__(self, tokens: list[int], goal: list[float]):
        self.tokens, self.goal = tokens, torch.tensor(goal)

    def features(self, x0: Tensor) -> Tensor:
        return x0[:, self.tokens, 0]

    def __call__(self, x0: Tensor) -> Tensor:
        return -(self.features(x0) - self.goal).square().sum(1) / (2 * STD**2)


def posterior(energy: Goals) -> tuple[Tensor, Tensor]:
    """Mean [T] and covariance [T, T] of the process given the goals."""
    cov, at = covariance(TIME, RHO), energy.tokens
    gain = cov[:, at] @ torch.linalg.inv(cov[at][:, at] + STD**2 * torch.eye(len(at), dtype=torch.float64))
    return gain @ energy.goal.double(), cov - gain @ cov[at]


def errors(x: Tensor, energy: Goals) -> dict[str, float]:
    """Of samples [N, T]."""
    gaps = zip((x.mean(0), x.T.cov()), posterior(energy), strict=True)
    return {f"{name} error": float((got - wanted).abs().max())
            for name, (got, wanted) in zip(("mean", "covariance"), gaps, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args, begin, schedule, rows = parser.parse_args(), time.monotonic(), linear(1000), list[Row]()
    torch.set_num_threads(1)
    z = torch.randn(SAMPLES, TIME, generator=torch.Generator().manual_seed(0)).double()
    z = z - z.mean(0)
    start = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False).T.float()[..., None]
    matrix = pyramid(schedule.grid(STEPS), TIME, DELAY)
    for goal, (tokens, values) in GOALS.items():
        energy = Goals(tokens, values)
        for name, way in WAYS.items():
            x = generate(way(Causal(schedule, RHO), schedule, energy), schedule, matrix, start, noise=Noise(1))
            rows += [make_row("AR(1), rho .8", name, metric, value, n=SAMPLES, variant={"goal": goal})
                     for metric, value in errors(x[..., 0].double(), energy).items()]
        print(markdown_table(rows), flush=True)
    if args.out:
        write_results(args.out, results_header(environment(), round(time.monotonic() - begin, 1)), rows)


if __name__ == "__main__":
    main()
