"""How far ratios are from 1 before any update, by precision and batch shape: python
scripts/studies/benchmark/on_policy.py [--runs 8] [--steps 10] [--out FILE]

Runs of a random Stable Diffusion (1.4 million weights, 16 x 16 latents of 4 channels, guidance 5) are recorded all at
once and replayed `rows` steps of runs at a time: with as many rows as runs in the shapes that sampled.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import tiny_sd
import torch

from dforce.align import replay
from dforce.core.noise import Noise
from dforce.images.pipeline import load_pipeline
from dforce.report.rows import Row, make_row, write_results
from dforce.report.table import markdown_table
from dforce.runs.folder import environment, results_header

BF16 = torch.bfloat16
WAYS = {  # dtype of the weights, of the network while it samples, and while it is replayed
    "fp32": (torch.float32, None, None), "bf16 autocast in both": (torch.float32, BF16, BF16),
    "bf16 weights": (BF16, None, None), "fp32 replayed in bf16": (torch.float32, None, BF16)}


def measured(folder: str, runs: int, steps: int) -> list[Row]:
    """The largest log-ratio of every way and shape."""
    result = []
    for name, (weights, sampling, replaying) in WAYS.items():
        pipeline = load_pipeline(folder, dtype=weights)
        sampler = pipeline.sampler(steps, guidance=5.0, autocast=sampling)
        trace = sampler.record(runs, pipeline.encode(["a cat"] * runs), Noise(0))
        for rows in (runs, 1, runs // 2, 2 * runs, runs * steps):
            with torch.no_grad():
                now = replay(trace, sampler.denoiser, sampler.schedule, rows=rows, autocast=replaying)
            ratio = (now.log_prob - now.old).abs()
            variant = {"rows": rows, "dims": int(now.dims.max()), "runs": runs}
            result += [make_row("before any update", name, metric, float(value), n=ratio.numel(), variant=variant,
                                unit=unit, higher=metric == "exactly 0")
                       for metric, value, unit in (("largest log-ratio", ratio.max(), "nats of a step"),
                                                   ("exactly 0", (ratio == 0).double().mean(), "of the steps"))]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(str(tiny_sd.build(Path(folder))), args.runs, args.steps)
    print(markdown_table(rows))
    if args.out:
        write_results(args.out, results_header(environment(), round(time.monotonic() - begin, 1)), rows)


if __name__ == "__main__":
    main()
