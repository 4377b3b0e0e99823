"""One frame of a rollout against the official way, and ten thousand frames in constant time and memory.

python scripts/studies/benchmark/rollout.py [--checkpoint RUN] [--frames 10000] [--steps 10] [--official 50 100]
[--device cpu]
    [--out FOLDER]

The official way runs the whole network once a frame in every denoising step, first order (DDIM), and keeps the latent
that the last step leaves. Ours takes fewer, second-order steps and reads the finished frame once more, encoder and
recurrence alone. Same network, same weights. Whether the frames are as good is measured too, where --checkpoint is a
trained model of `dforce train video data=balls`: drift of both by Frechet distance in features of the data, and by the
physics of the balls. Without one the network is fresh, and only its speed is told.
Times on a CPU are of the process's own work (CPU seconds), so that what else the machine does leaves them alone; on a
GPU seconds until it is done.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser, Precond
from dforce.core.noise import Noise
from dforce.core.schedule import Schedule, cosine
from dforce.core.transition import transition
from dforce.data.pixels import to_uint8
from dforce.nets.conv import ConvGRUNet
from dforce.report.rows import Row
from dforce.report.statistics import median_interval
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder, Ticker
from dforce.train.precision import device_of
from dforce.video.metrics.drift import distances, floor, reference
from dforce.video.metrics.features import train_features
from dforce.video.metrics.measure import RowMaker
from dforce.video.model import VideoModel, load_video
from dforce.video.reference_clips import RealVideo
from dforce.video.stream import Recipe, begin, stream
from dforce.video.truth import physics

TASK = "video rollout"
ROUNDS = 5          # of every way, in turn
TIMED = 4           # frames of a round
BLOCK = 500         # frames of which time and memory are told together
WINDOW, CONTEXT = 20, 4  # frames, of drift


def fresh(size: int, width: int, device: torch.device) -> VideoModel:
    """A model with random weights: as fast as a trained one."""
    torch.manual_seed(0)
    schedule = cosine(1000)
    net = ConvGRUNet((1, size, size), width=width, latent=width)
    denoiser = Precond(net, schedule, "v").to(device).eval().requires_grad_(False)
    return VideoModel(denoiser, schedule, (1, size, size), 1, 0, "", 0, {}, {}, Path())


@torch.no_grad()
def official(denoiser: Denoiser, schedule: Schedule, state: Any, shape: tuple[int, ...], *, steps: int,
             clamp: float | None, noise: Noise) -> Iterator[tuple[Tensor, Any]]:
    """Frames [B, 1, C, H, W], first-order steps evenly spaced in the level; the latent is that of the last step."""
    grid, device = schedule.grid(steps, "index"), schedule.alpha.device
    for frame in itertools.count():
        x = noise(0, torch.tensor([frame], device=device), torch.empty(shape, device=device))
        after = state
        for level, to in itertools.pairwise(grid.tolist()):
            k, s = (torch.full(shape[:2], each, device=device) for each in (level, to))
            x0, after = denoiser(x, k, state)
            x = transition(schedule, x, x0 if clamp is None else x0.clamp(-clamp, clamp), k, s, eta=0.0).mean
        state = after
        yield x, state


def ways(model: VideoModel, args: argparse.Namespace) -> dict[str, Any]:
    """Name -> (state, batch) -> frames."""
    streams: dict[str, Any] = {}
    for steps in args.official:
        streams[f"official, {steps} steps"] = lambda state, batch, steps=steps: official(
            model.denoiser, model.schedule, state, (batch, 1, *model.shape), steps=steps, clamp=1.0, noise=Noise(1))
    recipe = Recipe(steps=args.steps, stabilise_std=args.std, refresh=args.refresh and tuple(args.refresh))
    streams[f"ours, {args.steps} steps of second order"] = lambda state, batch: stream(
        model, recipe, state, batch=batch, noise=Noise(1))
    return streams


def times(model: VideoModel, args: argparse.Namespace) -> list[Row]:
    """Seconds a frame of every way, taken in turn, and how many times faster ours is, round by round."""
    streams = {name: way(begin(model, Recipe(), torch.zeros(1, 0, *model.shape)), 1)
               for name, way in ways(model, args).items()}
    for each in streams.values():
        next(each)
    taken: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(ROUNDS):
        gc.collect()
        for name, each in streams.items():
            start = clock(model.device)
            for _ in range(TIMED):
                next(each)
            taken[name].append((clock(model.device) - start) / TIMED)
    *others, ours = streams
    about = {"size": model.shape[1], "weights": sum(p.numel() for p in model.denoiser.parameters())}
    unit = "CPU s" if model.device.type == "cpu" else "s"
    rows = [_timed(name, about, "time of a frame", values, unit, False) for name, values in taken.items()]
    for name in others:
        ratio = np.array(taken[name]) / np.array(taken[ours])
        rows.append(_timed(ours, {**about, "than": name}, "faster", ratio, "times", True))
    return rows


def clock(device: torch.device) -> float:
    """Seconds: of this process's own work on a CPU, of the wall once all that a GPU was given is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _timed(method: str, variant: dict[str, Any], metric: str, values: Any, unit: str, higher: bool) -> Row:
    return RowMaker(TASK, method, variant).row(metric, median_interval(np.asarray(values)), unit=unit, higher=higher)


def drifts(model: VideoModel, args: argparse.Namespace) -> list[Row]:
    """Of every way, from the same contexts with the same noise: distance, physics. [] for a model of other data."""
    if model.data != "balls":
        return []
    learnt, real = (RealVideo(model, "balls", split=split, window=16) for split in ("train", "val"))
    encoder = train_features(lambda step: learnt.windows(step)[0], steps=200, device=model.device)
    of = reference(encoder, learnt.clips(48).frames, real.clips(48).frames, window=WINDOW)
    start = real.clips(args.rollouts, CONTEXT, skip=48)
    end = args.drift_frames
    spans, rows = [(0, 50), (end - 50, end)], []
    least = floor(of, args.rollouts, 50)
    rows.append(RowMaker(TASK, "real video", {"frames": 50}).row("frechet", least, higher=False))
    for name, way in ways(model, args).items():
        state = begin(model, Recipe(refresh=args.refresh and tuple(args.refresh)), start.frames) \
            if name.startswith("ours") else begin(model, Recipe(), start.frames)
        made = torch.cat([x for x, _ in itertools.islice(way(state, args.rollouts), end)], 1).cpu()
        stored = to_uint8(made).swapaxes(0, 1)
        for (a, b), each in zip(spans, distances(stored, of, spans), strict=True):
            maker, values = RowMaker(TASK, name, {"frames": f"{a}-{b}"}), physics(made[:, a:b])
            rows.append(maker.row("frechet", each, higher=False))
            rows += [maker.mean(metric, values[metric].nanmean(1).nan_to_num(0.0))
                     for metric in ("speed", "mass", "bad")]
        print(markdown_table(rows), flush=True)
    return rows


def endless(args: argparse.Namespace, folder: RunFolder) -> list[Row]:
    """Time and memory of `args.frames` frames of a tiny network, one step each: second half against first."""
    model = fresh(16, 4, args.device)
    recipe = Recipe(steps=1)
    frames = stream(model, recipe, begin(model, recipe, torch.zeros(1, 0, *model.shape)), batch=1, noise=Noise(0))
    seconds: list[float] = []
    memory: list[float] = []
    with Ticker(args.frames, "endless") as ticker:
        while BLOCK * len(seconds) < args.frames:
            start = clock(args.device)
            for _ in range(BLOCK):
                next(frames)
            seconds.append((clock(args.device) - start) / BLOCK)
            memory.append(_resident(args.device))
            ticker.advance(BLOCK)
            folder.log(BLOCK * len(seconds), seconds_a_frame=seconds[-1], resident_mb=memory[-1])
    half = len(seconds) // 2
    slope = float(np.polyfit(np.arange(len(memory) - 1) * BLOCK / 1000, memory[1:], 1)[0]) if len(memory) > 2 else 0.0
    maker = RowMaker(TASK, "ours, a tiny network", {"frames": args.frames})
    ratio = np.median(seconds[half:]) / np.median(seconds[:half]) if half else 1.0
    return [maker.row("time of the second half / first", float(ratio), n=len(seconds), unit="times"),
            maker.row("memory per 1000 frames", slope, n=len(memory), unit="MB"),
            maker.row("resident memory at the end", memory[-1], n=1, unit="MB")]


def _resident(device: torch.device) -> float:
    """Memory of this process now, MB (2^20 bytes); on a GPU that of its tensors."""
    if device.type != "cpu":
        return torch.cuda.memory_allocated(device) / 2**20
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:  # no /proc: the largest so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a trained model; none: a fresh network, and no drift")
    parser.add_argument("--frames", type=int, default=10_000, help="of the endless rollout; 0 for none")
    parser.add_argument("--steps", type=int, default=10, help="of ours")
    parser.add_argument("--official", type=int, nargs="+", default=[50, 100], help="steps of the official way")
    parser.add_argument("--std", type=float, default=0.04, help="noise that finished frames are said to carry")
    parser.add_argument("--refresh", type=int, nargs=2, help="ours: re-encode the last so many frames every so many")
    parser.add_argument("--drift-frames", type=int, default=200, help="of those whose drift is measured; 100 or more")
    parser.add_argument("--rollouts", type=int, default=16, help="whose drift is measured")
    parser.add_argument("--width", type=int, default=24, help="of the fresh network")
    parser.add_argument("--size", type=int, default=16, help="pixels of the fresh network's frames")
    parser.add_argument("--device", help="none: the GPU if there is one")
    parser.add_argument("--out")
    args = parser.parse_args()
    args.device = device_of(args.device)
    torch.set_num_threads(1)
    model = load_video(args.checkpoint, device=args.device) if args.checkpoint else \
        fresh(args.size, args.width, args.device)
    with RunFolder("benchmark/rollout", {**vars(args), "device": str(args.device)}, out=args.out) as folder:
        rows = times(model, args)
        folder.results(rows)
        rows += drifts(model, args)
        folder.results(rows)
        if args.frames:
            rows += endless(args, folder)
        folder.results(rows)
        print(markdown_table(rows))


if __name__ == "__main__":
    main()
