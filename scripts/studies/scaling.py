"""Held-out loss over parameters and over compute: python scripts/studies/scaling.py [--steps 800] [--out runs/scaling]

Trains GRU and transformer planners of three sizes each on umaze, one run a size, through `dforce train`. Resumable: a
size whose run is done is not trained again. Writes docs/results/scaling.json and docs/img/scaling.png.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

import dforce
from dforce.benchmarks.speed.cost import flops
from dforce.config import build
from dforce.data import Batch
from dforce.report.rows import Row, make_row, write_results
from dforce.runs.folder import environment, results_header

SIZES = {
    "GRU": ["net=recurrent net.width=96", "net=recurrent net.width=192", "net=recurrent net.width=384"],
    "transformer": ["net=transformer net.width=48", "net=transformer net.width=96", "net=transformer net.width=192"],
}
SHARE = {"GRU": 1.0, "transformer": 0.5}  # of --steps: a step of the transformer costs several of the GRU's
EVERY = 100  # steps between looks at the held-out data


def train(overrides: str, steps: int, folder: Path) -> None:
    """One run, unless it is done. A constant learning rate: each point of the curve is then a run that ended there."""
    if (folder / "STATUS").is_file() and (folder / "STATUS").read_text().strip() == "done":
        return
    command = [sys.executable, "-m", "dforce", "train", *overrides.split(), f"fit.steps={steps}", "+fit.decay=constant",
               "fit.lr=1e-3", f"fit.validate_every={EVERY}", "fit.ema=0.99", f"save_every={steps}", f"out={folder}"]
    subprocess.run(command, check=True)


def curve(folder: Path) -> tuple[list[int], list[float], int, float]:
    """Steps, held-out losses, parameters, and FLOPs of one training step."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seen = [line for line in lines if line.get("val_loss") is not None]
    bundle = dforce.load(folder)
    objective = build(bundle.config["objective"])(bundle.denoiser, bundle.schedule)
    batch = bundle.config["batch"]
    time, width = bundle.layout["horizon"] // bundle.layout["stack"], bundle.layout["event_shape"][0]
    start = torch.randn(batch, bundle.layout["static"]["start"])
    example = Batch(torch.randn(batch, time, width), torch.ones(batch, time, dtype=torch.bool),
                    {"static": {"start": start}}, torch.ones(batch, dtype=torch.bool))
    cost = flops(lambda: objective(example, torch.Generator().manual_seed(0))[0].backward())
    parameters = sum(p.numel() for p in bundle.denoiser.parameters())
    return [line["step"] for line in seen], [line["val_loss"] for line in seen], parameters, float(cost)


def duration(folder: Path) -> float:
    """Seconds that a run took."""
    return float(json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    args = parser.parse_args()
    rows: list[Row] = []
    series = {}
    for net, sizes in SIZES.items():
        for number, overrides in enumerate(sizes):
            folder = args.out / f"{net}-{number}"
            train(overrides, int(args.steps * SHARE[net]), folder)
            steps, losses, parameters, cost = curve(folder)
            series[f"{net}, {parameters / 1e6:.2f} M"] = ([cost * s for s in steps], losses)
            for step, loss in zip(steps, losses, strict=True):
                variant = {"net": overrides, "parameters": parameters, "steps": step, "teraflops": cost * step / 1e12}
                rows.append(make_row("maze2d-umaze", net, "val_loss", loss, n=512, variant=variant,
                                     unit="weighted x0 error", higher=False))
    header = results_header(environment(), sum(map(duration, args.out.iterdir())))
    write_results(Path("docs/results/scaling.json"), header, rows)
    draw(series)


def draw(series: dict[str, tuple[list[float], list[float]]]) -> None:
    """docs/img/scaling.png: one line a size, over the compute spent."""
    from dforce.report.plots.style import PALETTE, new_figure, plain_axes

    figure = new_figure(8, 5)
    ax = figure.add_subplot()
    plain_axes(ax, title="held-out loss over compute, maze2d-umaze", xlabel="training compute (FLOP)",
               ylabel="weighted x0 error", grid="both")
    for number, (name, (compute, losses)) in enumerate(series.items()):
        ax.loglog(compute, losses, color=PALETTE[number // 3], alpha=(0.45, 0.7, 1.0)[number % 3],
                  linestyle=(":", "--", "-")[number % 3], label=name)
    ax.legend(frameon=False)
    Path("docs/img").mkdir(parents=True, exist_ok=True)
    figure.savefig("docs/img/scaling.png")


if __name__ == "__main__":
    main()
