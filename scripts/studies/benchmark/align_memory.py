"""Memory and time of one update of DDPO-IS by the ways to hold its activations: python
scripts/studies/benchmark/align_memory.py [--runs 16] [--steps 20] [--rows 4] [--rounds 3] [--out FILE]

A `UNet2DModel` of diffusers with 1.5 million weights on 4 x 16 x 16 latents; the runs are recorded first, `rows` at a
time. Each way's peak is that of a process of its own (ru_maxrss), less what the process held when the runs were
recorded. Gradients are compared before a clock runs; seconds are this process's own on one thread, the ways in turn.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor

from dforce.align import AlignObjective, Samples, losses, policy_gradient
from dforce.align.trace import record, replay
from dforce.benchmarks.speed.harness import Way, race
from dforce.core.denoiser import Precond
from dforce.core.noise import Noise
from dforce.core.schedule import cosine
from dforce.core.tree import map_state, select
from dforce.nets.diffusers import PretrainedNet
from dforce.report.rows import Row, make_row, write_results
from dforce.report.table import markdown_table
from dforce.runs.folder import environment, results_header

SHAPE = (4, 16, 16)


class Update:
    """The gradient of one update, by ways that differ in what they hold."""

    def __init__(self, runs: int, steps: int, rows: int):
        torch.manual_seed(0)
        unet = UNet2DModel(sample_size=16, in_channels=4, out_channels=4, block_out_channels=(32, 64),
                           layers_per_block=2, norm_num_groups=8, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
                           up_block_types=("AttnUpBlock2D", "UpBlock2D"))
        self.schedule, self.rows = cosine(1000), rows
        self.denoiser = Precond(PretrainedNet(unet), self.schedule, "v").eval()
        path, start = self.schedule.grid(steps + 1, "index")[:, None], torch.randn(runs, 1, *SHAPE)
        parts = [record(self.denoiser, self.schedule, path, part, noise=Noise(i))
                 for i, part in enumerate(start.split(rows))]
        self.trace = map_state(lambda *part: torch.cat(part), *parts)
        self.advantage = torch.randn(runs, dtype=torch.float64)
        self.before = peak()

    def ours(self, rows: int | None) -> Tensor:
        objective = AlignObjective(self.denoiser, self.schedule, policy_gradient(rows=rows))
        batch = Samples(self.trace.x[:, -1], None, self.advantage, self.advantage, torch.arange(len(self.advantage)),
                        self.trace)
        return self.gradient(lambda: objective(batch)[0].backward())

    def again(self) -> Tensor:
        """The graph of all steps, `rows` cells of which are computed again at a time."""
        moving = torch.arange(self.trace.log_prob.shape[1] - 1)
        return self.gradient(lambda: self.loss(self.trace, self.advantage, moving).backward())

    def plain(self) -> Tensor:
        """A step of `rows` runs forward and backward, then the next, as published trainers do."""
        def walk() -> None:
            steps = self.trace.log_prob.shape[1] - 1
            for run in torch.arange(len(self.advantage)).split(self.rows):
                for step in range(steps):
                    part = self.loss(select(self.trace, run), self.advantage[run], torch.tensor([step]))
                    (part * len(run) / len(self.advantage) / steps).backward()
        return self.gradient(walk)

    def loss(self, trace: object, advantage: Tensor, steps: Tensor) -> Tensor:
        now = replay(trace, self.denoiser, self.schedule, steps=steps, rows=self.rows)  # type: ignore[arg-type]
        return losses.ddpo_is(now.log_prob, now.old, advantage, now.dims)

    def gradient(self, backward: Callable[[], None]) -> Tensor:
        self.denoiser.zero_grad()
        backward()
        return torch.cat([p.grad.flatten() for p in self.denoiser.parameters() if p.grad is not None])

    def ways(self) -> dict[str, Callable[[], Tensor]]:
        return {"all at once": lambda: self.ours(None), f"plain loop, {self.rows} runs a step": self.plain,
                f"all at once, {self.rows} cells recomputed": self.again,
                f"rows={self.rows}": lambda: self.ours(self.rows)}


def peak() -> float:
    """MB of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("runs", 16), ("steps", 20), ("rows", 4), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--alone", help="run this way once, and print its peak in MB")
    parser.add_argument("--out", type=Path)
    args, begin = parser.parse_args(), time.monotonic()
    torch.set_num_threads(1)
    update = Update(args.runs, args.steps, args.rows)
    if args.alone:
        update.ways()[args.alone]()
        print(json.dumps([update.before, peak()]))
        return
    variant = {"weights": sum(p.numel() for p in update.denoiser.parameters()), "runs": args.runs, "steps": args.steps}
    rows: list[Row] = []
    for name in update.ways():
        alone = subprocess.run([sys.executable, *sys.argv, "--alone", name], capture_output=True, text=True, check=True)
        before, most = json.loads(alone.stdout.splitlines()[-1])
        rows += [make_row("update", name, metric, value, n=1, variant=variant, unit="MB", higher=False)
                 for metric, value in (("peak memory", most), ("of it for the update", most - before))]
    raced = race([Way(name, run) for name, run in update.ways().items()], rounds=args.rounds, timer=time.process_time)
    rows += raced.measured("update", variant).rows
    print(markdown_table(rows))
    if args.out:
        write_results(args.out, results_header(environment(), round(time.monotonic() - begin, 1)), rows)


if __name__ == "__main__":
    main()
