"""How far the bound lies below the likelihood of AR(1): exact denoiser over K, and the GRUs that ar1.py trained.

python scripts/studies/laws/bound.py [--runs runs/laws] [--out docs/results/ar1_bound.json]
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from figures import INNOVATION, RHO
from torch import Tensor

from dforce import load
from dforce.core.denoiser import Denoiser
from dforce.core.elbo import elbo
from dforce.core.schedule import Schedule, linear
from dforce.report.rows import make_row, write_results
from dforce.report.statistics import Interval
from dforce.runs.folder import environment, results_header
from tests.gaussian_bed import Causal, ar1  # in tests/, where `figures` looks

SEQUENCES, TOKENS, STRATA = 400, 16, 200


def even(levels: int) -> Schedule:
    """Variance preserving, log-SNR falling evenly from 10 to -9 nats."""
    snr = torch.linspace(10, -9, levels, dtype=torch.float64).exp()
    one = torch.ones(1, dtype=torch.float64)
    return Schedule(torch.cat([one, (snr / (1 + snr)).sqrt()]), torch.cat([0 * one, (1 / (1 + snr)).sqrt()]))


def gap(denoiser: Denoiser, schedule: Schedule, x: Tensor, levels: int | None) -> Tensor:
    """log p - bound in nats a token, the mean of every sequence but for its first token: [B]."""
    after = torch.distributions.Normal(RHO * x[:, :-1, 0].double(), INNOVATION)
    return (after.log_prob(x[:, 1:, 0].double()) - elbo(denoiser, schedule, x, levels=levels).bound[:, 1:]).mean(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/laws"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/ar1_bound.json"))
    args, begin, about = parser.parse_args(), time.monotonic(), environment()
    torch.set_num_threads(1)
    x, rows = ar1(SEQUENCES, TOKENS, torch.Generator().manual_seed(0)), []
    cases: list[tuple[str, dict[str, Any], Any, Schedule, int | None]] = []
    for make, levels in itertools.product((even, linear), (50, 200, 1000)):
        schedule = make(levels)
        cases.append(("exact", {"schedule": make.__name__, "K": levels}, Causal(schedule), schedule, None))
    cases.append(("exact", {"schedule": "linear", "K": 1000}, Causal(schedule), schedule, STRATA))  # noise as below
    for folder in sorted(args.runs.glob("GRU-*")):
        bundle = load(folder)
        cases.append((folder.name, {"schedule": "linear", "K": 1000}, bundle.denoiser, bundle.schedule, STRATA))
    for method, variant, denoiser, schedule, strata in cases:
        gaps = gap(denoiser, schedule, x, strata)
        mean, half = float(gaps.mean()), 1.96 * float(gaps.std()) / SEQUENCES**0.5
        print(f"{method:6} {variant}: {mean:.3f} +- {half:.3f} nats a token below the likelihood", flush=True)
        rows.append(make_row("AR(1)", method, "gap of the bound", Interval(mean, mean - half, mean + half, SEQUENCES),
                             variant=variant | {"strata": strata}, unit="nats a token", higher=False))
    header = results_header(about, round(time.monotonic() - begin, 1))
    write_results(args.out, header, rows)


if __name__ == "__main__":
    main()
