"""Is a known process learnt, and kept? AR(1), rho .9: rollouts 20 times beyond training, and the planner's matrices.

python scripts/studies/laws/ar1.py [rollout|matrices|non-causal] [--seeds 3] [--steps 20000] [--runs runs/laws] [--out
FILE]

rollout: trains a GRU of width 64 on 32 tokens, one a seed, and rolls out 640. matrices: 16 tokens sampled down pyramids
of several delays by these GRUs, by a transformer without its mask, and by the exact denoisers of both kinds.
non-causal: the same by a temporal U-Net that was shown the planner's own rows in half of its training. Resumable:
training goes on from its last checkpoint in --runs, and what is rolled out stays there.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import TRUE, figures, interval, joint, moments, rolled
from learn import learn, planned

from dforce.core.denoiser import Precond
from dforce.core.loss import even_log_snr
from dforce.report.rows import Row, make_row, write_results
from dforce.report.statistics import Interval
from dforce.runs.folder import environment, results_header
from tests.gaussian_bed import Causal, NonCausal  # in tests/, where the two beside this look

NETS: dict[str, dict[str, Any]] = {
    "GRU": {"_target_": "dforce.nets.recurrent.RecurrentNet", "width": 64},
    "transformer": {"_target_": "dforce.nets.transformer.TransformerNet", "causal": False, "width": 64, "depth": 2},
    "U-Net": {"_target_": "dforce.nets.temporal.TemporalUNet", "width": 32, "multipliers": [1, 2]},
}
TOKENS, SEQUENCES, COUNTED = 640, 256, 320  # rolled out, how many, and the last ones that are judged
VARIANTS = [*itertools.product((20, 10), (2, 1), (0.0, 1.0)), (100, 1, 0.0)]  # steps, order, eta
STEPS, DELAYS, DRAWS = 20, (0, 1, 5, 10, 20), 2048  # of pyramids


def network(args: argparse.Namespace, name: str, seed: int, **options: Any) -> Precond:
    return learn(args.runs / f"{name}-{seed}", NETS[name], seed=seed, **{"steps": args.steps, **options})


def rolled_moments(args: argparse.Namespace, seed: int, variant: tuple[int, int, float]) -> np.ndarray:
    """moments [SEQUENCES, 6] of one seed's rollout, from its file where there is one."""
    file = args.runs / f"GRU-{seed}" / "rollouts" / f"{args.steps}-{'-'.join(map(str, variant))}.npy"
    if not file.is_file():
        denoiser, (steps, order, eta) = network(args, "GRU", seed), variant
        x = rolled(denoiser, denoiser.schedule, steps=steps, order=order, eta=eta, tokens=TOKENS, batch=SEQUENCES,
                   seed=seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, moments(x[:, -COUNTED:]))
    return np.load(file)


def rollout_rows(args: argparse.Namespace) -> Iterator[Row]:
    for variant in VARIANTS:
        runs = [rolled_moments(args, seed, variant) for seed in range(args.seeds)]
        for seed, chosen in [("all", runs), *((seed, [run]) for seed, run in enumerate(runs))]:
            label = dict(zip(("steps", "order", "eta"), variant, strict=True)) | {"seed": seed}
            means = np.mean([figures(run) for run in chosen], axis=0)
            for metric, value, low, high in zip(TRUE, means, *interval(chosen), strict=True):
                estimate = Interval(float(value), float(low), float(high), len(chosen) * SEQUENCES)
                yield make_row("AR(1)", "GRU, rollout", metric, estimate, variant=label, seeds=len(chosen))


def matrix_rows(args: argparse.Namespace) -> Iterator[Row]:
    if args.mode == "non-causal":
        nets = [network(args, "U-Net", 0, horizon=16, steps=args.steps * 3 // 10, lr=2e-3, levels=planned)]
        return joint_rows({"exact, non-causal": [NonCausal(nets[0].schedule, 16)], "temporal U-Net": nets})
    grus = [network(args, "GRU", seed) for seed in range(args.seeds)]
    schedule = grus[0].schedule
    transformer = network(args, "transformer", 0, horizon=16, steps=args.steps // 4, lr=2e-3, levels=even_log_snr)
    return joint_rows({"exact, causal": [Causal(schedule)], "GRU": grus,
                       "exact, non-causal": [NonCausal(schedule, 16)], "transformer, no mask": [transformer]})


def joint_rows(methods: dict[str, list[Any]]) -> Iterator[Row]:
    """The law of 16 tokens down every pyramid, by networks of several seeds each."""
    schedule = next(iter(methods.values()))[0].schedule
    for (method, denoisers), delay in itertools.product(methods.items(), DELAYS):
        laws = [joint(denoiser, schedule, steps=STEPS, delay=delay, batch=DRAWS) for denoiser in denoisers]
        for metric in laws[0]:
            values = [law[metric] for law in laws]
            yield make_row("AR(1)", method, metric,
                           Interval(float(np.mean(values)), min(values), max(values), DRAWS), seeds=len(laws),
                           variant={"steps": STEPS, "delay": delay, "delay / steps": delay / STEPS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=("rollout", "matrices", "non-causal"), default="rollout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000, help="of training")
    parser.add_argument("--runs", type=Path, default=Path("runs/laws"))
    parser.add_argument("--out", type=Path, help="default docs/results/ar1_<mode>.json")
    args, begin, about, rows = parser.parse_args(), time.monotonic(), environment(), []
    torch.set_num_threads(1)  # of so small a network, more of them only wait for each other
    for each in rollout_rows(args) if args.mode == "rollout" else matrix_rows(args):
        rows.append(each)
        named = ", ".join(f"{name} {value}" for name, value in each["variant"].items())
        print(f"{each['method']:20} {named}: {each['metric']} {each['value']:.3f} [{each['low']:.3f}, "
              f"{each['high']:.3f}]", flush=True)
    header = results_header(about, round(time.monotonic() - begin, 1))
    write_results(args.out or Path(f"docs/results/ar1_{args.mode}.json"), header, rows)


if __name__ == "__main__":
    main()
