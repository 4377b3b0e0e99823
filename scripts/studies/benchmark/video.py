"""The training step of the video network, against the same network run the official way.

python scripts/studies/benchmark/video.py [--size 32] [--batch 1 4 16] [--frames 16] [--width 24] [--rounds 9] [--bf16]

The official code runs its whole network once a frame, inside the recurrence. Here encoder and decoder see all frames at
once, and only the convolution of the latent walks through time. Same weights, same arithmetic, same loss and gradient
(compared before a clock runs): what is told is the structure's own worth, forward, backward, clipping and AdamW.
Times are of the process's own work (CPU seconds on a CPU), so that what else the machine does leaves them alone.
Several batches are told one by one: the fewer frames of one time there are, the less a core has to do at once. On one
core a large batch fills it either way, and then the arithmetic, which is equal, is all that counts.
--bf16 adds both ways under bfloat16 autocast, for machines that have units for it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dforce.benchmarks.speed.cost import flops, launches, peak_memory
from dforce.benchmarks.speed.harness import Race, Timings, Way, all_timings, median_row, race
from dforce.benchmarks.speed.train_step import TOLERANCE, Name, fit_stepper, loss_and_gradient
from dforce.core.denoiser import Precond
from dforce.core.schedule import cosine
from dforce.data.batch import Batch
from dforce.nets.conv import ConvGRUNet, State
from dforce.report.rows import make_row
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder
from dforce.train.objectives import ForcingObjective
from dforce.train.precision import choose

TASK = "video training step"
ACTIONS = 3


class OnceAFrame(nn.Module):
    """`net` evaluated whole, once a frame. The same interface, the same weights (shared), the same results."""

    causal = True
    recurrent = True

    def __init__(self, net: ConvGRUNet):
        super().__init__()
        self.net = net

    def init_state(self, batch: int, cond: Any = None) -> State:
        return self.net.init_state(batch, cond)

    def forward(self, x: Tensor, label: Tensor, state: State, cond: Any = None) -> tuple[Tensor, State]:
        """x [B, T, C, H, W], label [B, T] -> out [B, T, C, H, W], state."""
        outs = []
        for t in range(x.shape[1]):
            now = slice(t, t + 1)
            given = {"token": {name: value[:, now] for name, value in cond["token"].items()}}
            out, state = self.net(x[:, now], label[:, now], state, given)
            outs.append(out)
        return torch.cat(outs, 1), state


def objective(args: argparse.Namespace, *, once_a_frame: bool) -> ForcingObjective:
    """The loss of `dforce train video`, its network thin or run whole once a frame, with the same weights."""
    torch.manual_seed(0)
    net = ConvGRUNet((3, args.size, args.size), token={"action": ACTIONS}, width=args.width, latent=args.width)
    schedule = cosine(1000)
    return ForcingObjective(Precond(OnceAFrame(net) if once_a_frame else net, schedule, "v").to(args.device), schedule)


def batch_of(args: argparse.Namespace, size: int) -> Batch:
    draw = torch.Generator().manual_seed(1)
    shape = (size, args.frames)
    action = nn.functional.one_hot(torch.randint(ACTIONS, shape, generator=draw), ACTIONS).float()
    x = torch.rand(*shape, 3, args.size, args.size, generator=draw) * 2 - 1
    first = torch.ones(size, dtype=torch.bool)
    return Batch(x, torch.ones(shape, dtype=torch.bool), {"token": {"action": action}}, first).to(args.device)


def measure(args: argparse.Namespace, size: int) -> Timings:
    """Time of a step of `size` clips both ways, how many times faster ours is, and what either costs."""
    batch, timings = batch_of(args, size), []
    names = [("whole network once a frame", True), ("ours", False)]
    weights = sum(p.numel() for p in objective(args, once_a_frame=False).parameters())
    precisions: tuple[Name, ...] = ("fp32", "bf16") if args.bf16 else ("fp32",)
    for precision in precisions:
        variant = {"size": args.size, "batch": size, "frames": args.frames, "parameters": weights,
                   "precision": precision, "threads": torch.get_num_threads(), "device": args.device.type}
        ways = []
        for name, once in names:
            built = objective(args, once_a_frame=once)
            ways.append(Way(name, fit_stepper(deepcopy(built), batch, precision), tolerance=TOLERANCE[precision],
                            result=partial(loss_and_gradient, built, batch, precision)))
        timer: Callable[[], float] = time.process_time if args.device.type == "cpu" else time.perf_counter
        raced = race(ways, rounds=args.rounds, seconds=args.seconds, timer=timer)
        timings.append(_with_costs(raced, raced.measured(TASK, variant), ways, variant))
    return all_timings(timings)


def _with_costs(raced: Race, measured: Timings, ways: list[Way], variant: dict[str, Any]) -> Timings:
    rows = list(measured.rows)
    for way in ways:
        work, frames = flops(way.run), variant["batch"] * variant["frames"]
        rows.append(make_row(TASK, way.name, "arithmetic of a step", work / 1e9, n=1, variant=variant, unit="GFLOP"))
        rows.append(median_row(TASK, way.name, "rate", frames / raced.seconds[way.name], variant=variant,
                               unit="frames/s", higher=True))
        rows.append(make_row(TASK, way.name, "launches", launches(way.run), n=1, variant=variant, unit="kernels",
                             higher=False))
        rows.append(make_row(TASK, way.name, "peak memory", peak_memory(way.run), n=1, variant=variant, unit="MB",
                             higher=False))
    return Timings(rows, measured.runs)


def main() -> None:
    about = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("size", 32), ("frames", 16), ("width", 24), ("rounds", 9), ("threads", 1)):
        about.add_argument(f"--{name}", type=int, default=default)
    about.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="clips a step")
    about.add_argument("--seconds", type=float, default=120.0, help="no new round after so many")
    about.add_argument("--bf16", action="store_true")
    about.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    about.add_argument("--out", type=Path, default=None, help="run folder; runs/benchmark/video/<time>")
    args = about.parse_args()
    torch.set_num_threads(args.threads)
    print(f"bfloat16 here: {choose('auto', args.device).reason}")
    with RunFolder("benchmark/video", {k: str(v) for k, v in vars(args).items()}, out=args.out) as folder:
        measured = all_timings(measure(args, size) for size in args.batch)
        folder.results(measured.rows)
        folder.episodes(measured.runs)
    print(markdown_table(measured.rows))
    print(folder.path)


if __name__ == "__main__":
    main()
