"""Is a known process learnt, and kept? AR(1), rho .9: rollouts 20 times beyond training, and the planner's matrices.

python scripts/laws/ar1.py [rollout|matrices] [--seeds 3] [--steps 20000] [--out docs/results/ar1.json]

rollout: trains a GRU of width 64 on 32 tokens, a network a seed, and rolls out 640. matrices: 16 tokens sampled down
pyramids of several delays by the GRU, by a transformer without its mask, and by the exact denoisers of both kinds.
Resumable: what is trained, or rolled out, stays in --runs. The results of the other mode are kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import TRUE, figures, interval, joint, moments, rolled
from learn import learn

from dforce.report.results import read_results, write_results
from dforce.run import environment, peak_memory_mb

TOKENS, SEQUENCES, COUNTED = 640, 256, 320  # rolled out, how many, and the last ones that are judged
VARIANTS = [(20, 2, 0.0), (20, 1, 0.0), (20, 2, 1.0), (20, 1, 1.0), (10, 2, 0.0), (10, 1, 0.0), (10, 2, 1.0),
            (10, 1, 1.0), (100, 1, 0.0)]    # steps, order, eta
STEPS, DELAYS = 20, (0, 1, 5, 10, 20)       # of a pyramid
BOUNDS = {"lag-1": 0.01, "innovation std": 0.03 * TRUE["innovation std"], "std": 0.05}


def row(method: str, variant: dict[str, Any], metric: str, value: float, *, n: int, seeds: int, low: float | None = None,
        high: float | None = None) -> dict[str, Any]:
    return {"task": "AR(1)", "method": method, "variant": variant, "metric": metric, "value": value, "low": low,
            "high": high, "n": n, "seeds": seeds, "unit": "", "higher_is_better": None}


def rolled_moments(runs: Path, seed: int, steps: int, variant: tuple[int, int, float]) -> np.ndarray:
    """moments [SEQUENCES, 6] of one seed's rollout, from its file where there is one."""
    file = runs / f"GRU-{seed}" / "rollouts" / f"{steps}-{'-'.join(map(str, variant))}.npy"
    if not file.is_file():
        denoiser = learn(runs / f"GRU-{seed}", "GRU", seed=seed, steps=steps)
        sampling, order, eta = variant
        x = rolled(denoiser, denoiser.schedule, steps=sampling, order=order, eta=eta, tokens=TOKENS, batch=SEQUENCES,
                   seed=seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, moments(x[:, -COUNTED:]))
    return np.load(file)


def rollout_rows(asked: argparse.Namespace) -> list[dict[str, Any]]:
    found = []
    for variant in VARIANTS:
        seeds = [rolled_moments(asked.runs, seed, asked.steps, variant) for seed in range(asked.seeds)]
        values, (low, high) = figures(np.concatenate(seeds)), interval(seeds)
        label = dict(zip(("steps", "order", "eta"), variant, strict=True)) | {"training": asked.steps}
        for i, metric in enumerate(TRUE):
            each = {f"seed {seed}": round(float(figures(one)[i]), 4) for seed, one in enumerate(seeds)}
            found.append(row("GRU, rollout", label | each, metric, float(values[i]), low=float(low[i]),
                             high=float(high[i]), n=asked.seeds * SEQUENCES, seeds=asked.seeds))
        told = ", ".join(f"{metric} {v:.3f} [{a:.3f}, {b:.3f}] {'ok' if abs(v - TRUE[metric]) < BOUNDS[metric] else '-'}"
                         for metric, v, a, b in zip(TRUE, values, low, high, strict=True))
        print(f"{variant[0]:4} steps, order {variant[1]}, eta {variant[2]:.0f}: {told}", flush=True)
    return found


def matrix_rows(asked: argparse.Namespace) -> list[dict[str, Any]]:
    from gaussian_bed import Causal, NonCausal

    learnt = {net: [learn(asked.runs / f"{net.split(',')[0]}-{seed}", net, seed=seed, steps=steps, horizon=horizon)
                    for seed in range(count)]
              for net, steps, horizon, count in (("GRU", asked.steps, 32, asked.seeds),
                                                 ("transformer, no mask", asked.steps // 2, 16, 1))}
    schedule = learnt["GRU"][0].schedule
    exact = {"exact, causal": [Causal(schedule)], "exact, non-causal": [NonCausal(schedule, 16)]}
    found = []
    for method, denoisers in (exact | learnt).items():
        for delay in DELAYS:
            laws = [joint(denoiser, schedule, steps=STEPS, delay=delay) for denoiser in denoisers]
            for metric in laws[0]:
                values = [law[metric] for law in laws]
                found.append(row(method, {"steps": STEPS, "delay": delay, "delay / steps": delay / STEPS}, metric,
                                 float(np.mean(values)), low=min(values), high=max(values), n=2048, seeds=len(laws)))
            print(f"{method:21} delay {delay:2}: " + ", ".join(
                f"{r['metric']} {r['value']:.3f}" for r in found[-len(laws[0]):]), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", nargs="?", choices=("rollout", "matrices"), default="rollout")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20_000, help="of training")
    parser.add_argument("--out", type=Path, default=Path("docs/results/ar1.json"))
    parser.add_argument("--runs", type=Path, default=Path("runs/laws"))
    asked, begin, about = parser.parse_args(), time.monotonic(), environment()
    torch.set_num_threads(1)  # of so small a network more of them only wait for each other
    rows = rollout_rows(asked) if asked.mode == "rollout" else matrix_rows(asked)
    other = read_results(asked.out).rows if asked.out.is_file() else []
    mine = {r["method"] for r in rows}
    header = {key: about[key] for key in ("command", "commit", "versions", "machine")}
    header |= {"seconds": round(time.monotonic() - begin, 1), "peak_memory_mb": peak_memory_mb()}
    write_results(asked.out, header, [r for r in other if r["method"] not in mine] + rows)


if __name__ == "__main__":
    main()
