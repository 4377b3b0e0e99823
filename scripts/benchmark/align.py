"""Times an epoch of policy-gradient tuning against a plain loop: python scripts/benchmark/align.py [key=value ...]

    nets=[mlp,unet]  parts=[epoch,reward]  rounds=5  samples=16  steps=10  held=64  epochs=30  seeds=3
    out=FILE  quick=true

An epoch is: sample `samples` runs of `steps` steps that have a density, ask the reward, one update of DDPO-IS by all of
them. The plain loop goes as published trainers do: one step of a microbatch of runs forward and backward, then the
next. Here all steps of a microbatch are one batch. Gradients are compared before a clock runs. Times are this process's
own seconds on one thread, the ways taking turns, so that a busy machine slows them alike. Memory is that of tensors in
an epoch of `held` samples, which all ways draw in one batch.

mlp: the shipped digits model, reward JPEG kilobytes. unet: a small `UNet2DModel` of diffusers on 8x8 pixels, untrained,
reward the mean of the pixels. "To equal reward": the plain loop's gradients being equal, it takes as many epochs as
batched replay of all steps, each at the plain loop's price.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor

from dforce.align import AlignObjective, OnPolicy, Query, Sampler, policy_gradient, standardised
from dforce.align.rewards import Jpeg
from dforce.align.source import SAMPLE, START_SALT
from dforce.bench.cost import peak_memory
from dforce.bench.harness import Measured, Way, join, race, row
from dforce.bench.sizes import parameters
from dforce.denoiser import Cond, Precond
from dforce.fit import fit
from dforce.images import class_cond, load_model
from dforce.nets.pretrained import PretrainedUNet
from dforce.noise import Noise, seed_of
from dforce.report.results import write_results
from dforce.report.table import markdown_table
from dforce.run import environment, peak_memory_mb
from dforce.schedule import Schedule, cosine
from dforce.transition import Gaussian, transition
from dforce.tree import select

DEFAULTS = {"nets": ["mlp", "unet"], "parts": ["epoch", "reward"], "rounds": 5, "seconds": 120.0, "samples": 16,
            "steps": 10, "held": 64, "epochs": 30, "seeds": 3, "lr": 1e-4, "fraction": 0.25, "rows": 4, "quick": False,
            "out": None}
QUICK = {"rounds": 3, "seconds": 1.0, "samples": 4, "steps": 3, "held": 4, "epochs": 3, "seeds": 1, "rows": 2}
PLAIN, BATCHED = "plain loop", "batched replay"
CHECKED = 2  # runs of an epoch whose log-probs `OnPolicy` compares before the update: work that the plain loop has not


class Bed(NamedTuple):
    """What is tuned: a policy, its steps down `matrix`, and a reward (samples, prompts, metadata) -> [B]."""

    name: str
    denoiser: Precond
    schedule: Schedule
    matrix: Tensor
    shape: tuple[int, ...]
    reward: Callable[..., Any]
    classes: int
    lr: float

    def ask(self, count: int, generator: torch.Generator) -> Query:
        """As many prompts: classes at random, or nothing for a model that is told none."""
        if not self.classes:
            return Query([""] * count)
        number = torch.randint(0, self.classes, (count,), generator=generator)
        return Query(number.tolist(), class_cond(number))


def brightness(samples: Tensor, prompts: Any, metadata: Any) -> Tensor:
    return samples.flatten(1).mean(1)


def make_bed(name: str, cfg: Any) -> Bed:
    if name == "mlp":
        model = load_model("digits")
        path = model.schedule.grid(cfg.steps + 1)[:-1, None]  # ends above level 0, whose step has no density
        return Bed(name, model.denoiser, model.schedule, path, (1, *model.shape), Jpeg(), len(model.classes), cfg.lr)
    if name != "unet":
        raise ValueError(f"nets are mlp and unet, got {name!r}")
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32), layers_per_block=1,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8)
    schedule = cosine(1000)
    denoiser = Precond(PretrainedUNet(unet), schedule, "v").eval()
    return Bed(name, denoiser, schedule, schedule.grid(cfg.steps + 1)[:-1, None], (1, 1, 8, 8), brightness, 0, cfg.lr)


# ------------------------------------------------------------------------------------------------- the plain loop

class Plain:
    """Sampling, then backward through one step of a microbatch of runs at a time, then AdamW."""

    def __init__(self, bed: Bed, samples: int, microbatch: int, *, clip_nats: float = 1.0):
        self.bed, self.samples, self.microbatch, self.clip = bed, samples, microbatch, clip_nats
        self.denoiser, self.epoch = deepcopy(bed.denoiser), 0
        self.optimizer = torch.optim.AdamW(self.denoiser.parameters(), lr=bed.lr, betas=(0.9, 0.999), weight_decay=0.0,
                                           fused=True)

    def run(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients()
        torch.nn.utils.clip_grad_norm_(self.denoiser.parameters(), 1.0)
        self.optimizer.step()
        self.epoch += 1

    def gradients(self) -> None:
        """Adds the epoch's to the parameters' own."""
        bed = self.bed
        query = bed.ask(self.samples, torch.Generator().manual_seed(seed_of(0, self.epoch, 0)))
        with torch.no_grad():
            xs, old = self.sample(query.cond)
        reward = torch.as_tensor(bed.reward(xs[-1], query.prompts, None), dtype=torch.float64)
        advantage = standardised(reward)
        cells = len(old) * self.samples
        for run in torch.arange(self.samples).split(self.microbatch):
            cond = select(query.cond, run) if query.cond else None
            for step, before in enumerate(old):
                kernel = self.kernel(xs[step][run], cond, step)
                nats = Gaussian(kernel.mean.double(), kernel.std.double()).log_prob(xs[step + 1][run].double())
                dims = kernel.dims().double()
                ratio, bound = ((nats - before[run]) / dims).exp(), self.clip / dims
                clipped = torch.minimum(torch.maximum(ratio, (-bound).exp()), bound.exp())
                gain = torch.minimum(ratio * advantage[run, None], clipped * advantage[run, None])
                (-gain.sum() / cells).backward()

    def sample(self, cond: Cond | None) -> tuple[list[Tensor], list[Tensor]]:
        """States [B, T, *E] before and after every step, log-probs [B, T] of every step."""
        noise, token = Noise(seed_of(0, self.epoch, SAMPLE)), torch.zeros(1, dtype=torch.long)
        xs, old = [noise(0, token, torch.empty(self.samples, *self.bed.shape), salt=START_SALT)], []
        for step in range(len(self.bed.matrix) - 1):
            kernel = self.kernel(xs[-1], cond, step)
            xs.append(kernel.sample(noise(step, token, xs[-1])))
            old.append(Gaussian(kernel.mean.double(), kernel.std.double()).log_prob(xs[-1].double()))
        return xs, old

    def kernel(self, x: Tensor, cond: Cond | None, step: int) -> Gaussian:
        level, to = (self.bed.matrix[at].expand(len(x), 1) for at in (step, step + 1))
        x0, _ = self.denoiser(x, level, self.denoiser.init_state(len(x), cond), cond)
        return transition(self.bed.schedule, x, x0, level, to)


# ------------------------------------------------------------------------------------------------------------ ours

class Ours:
    """The same through `OnPolicy` and `fit`: `parts` microbatches of runs, the chosen steps of each one batch."""

    def __init__(self, bed: Bed, samples: int, microbatch: int, *, fraction: float = 1.0, seed: int = 0):
        self.denoiser, self.parts = deepcopy(bed.denoiser), samples // microbatch
        sampler = Sampler(self.denoiser, bed.schedule, bed.matrix, bed.shape)
        self.source = OnPolicy(sampler, bed.reward, bed.ask, samples=samples, credit=standardised, checked=CHECKED,
                               seed=seed)
        self.objective = AlignObjective(self.denoiser, bed.schedule, policy_gradient(fraction=fraction))
        self.logs = fit(self.objective, self.source, lr=bed.lr, steps=10**9, decay="constant", warmup=0, ema=None,
                        weight_decay=0.0, accumulate=self.parts, precision="fp32", device="cpu", seed=seed)

    def run(self) -> None:
        next(self.logs)

    def gradients(self) -> None:
        batch = self.source(0)
        for run in torch.arange(len(batch.x)).chunk(self.parts):
            (self.objective(select(batch, run), torch.Generator().manual_seed(0))[0] / self.parts).backward()


def gradient(make: Callable[[], Plain | Ours]) -> Tensor:
    """Of the first epoch, all parameters in one vector."""
    way = make()
    way.gradients()
    return torch.cat([p.grad.flatten() for p in way.denoiser.parameters() if p.grad is not None])


# ------------------------------------------------------------------------------------------------------- the races

def epoch_race(bed: Bed, cfg: Any) -> tuple[Measured, dict[str, np.ndarray]]:
    """Equal work: the plain loop at microbatch 1 and `rows`, batched replay of as many runs; then a share of steps."""
    chosen: dict[str, partial[Any]] = {
        f"{PLAIN}, microbatch 1": partial(Plain, bed, cfg.samples, 1),
        f"{BATCHED}, microbatch 1": partial(Ours, bed, cfg.samples, 1),
        f"{PLAIN}, microbatch {cfg.rows}": partial(Plain, bed, cfg.samples, cfg.rows),
        f"{BATCHED}, microbatch {cfg.rows}": partial(Ours, bed, cfg.samples, cfg.rows)}
    ways = [Way(name, make().run, partial(gradient, make)) for name, make in chosen.items()]
    part = Ours(bed, cfg.samples, 1, fraction=cfg.fraction)  # other work: timed in the same rounds, not compared
    ways.append(Way(f"{BATCHED}, microbatch 1, {cfg.fraction:g} of the steps", part.run,
                    partial(gradient, chosen[f"{PLAIN}, microbatch 1"])))
    raced = race(ways, rounds=cfg.rounds, seconds=cfg.seconds, timer=time.process_time)
    variant = {"net": bed.name, "parameters": parameters(bed.denoiser), "samples": cfg.samples, "steps": cfg.steps}
    measured = raced.measured("epoch", variant)
    rows = [one for one in measured.rows if one["metric"] != "difference" or "of the steps" not in one["method"]]
    variant = {**variant, "samples": cfg.held}
    held = {**{name: partial(make.func, bed, cfg.held, *make.args[2:]) for name, make in chosen.items()},
            ways[-1].name: partial(Ours, bed, cfg.held, 1, fraction=cfg.fraction)}
    rows += [row(task="epoch, memory", method=name, variant=variant, metric="peak memory",
                 samples=[peak_memory(make().run)], unit="MB of tensors", higher_is_better=False)
             for name, make in held.items()]
    return measured._replace(rows=rows), raced.seconds


def curve(bed: Bed, cfg: Any, fraction: float, seed: int, epochs: int) -> np.ndarray:
    """[epochs] mean reward of each epoch's samples."""
    way = Ours(bed, cfg.samples, cfg.samples, fraction=fraction, seed=seed)
    for _ in range(epochs):
        way.run()
    return np.array([each["reward"] for each in way.source.epochs])


def reached(curve: np.ndarray, target: float, width: int = 5) -> float:
    """Epochs until the mean of `width` of them is at the target, NaN where it never is."""
    smooth = np.convolve(curve, np.ones(min(width, len(curve))) / min(width, len(curve)), "valid")
    found = np.flatnonzero(smooth >= target)
    return float(found[0] + min(width, len(curve))) if len(found) else float("nan")


def reward_race(bed: Bed, cfg: Any, seconds: dict[str, np.ndarray]) -> Measured:
    """Own seconds until the reward that all steps reach in `epochs` epochs, less a tenth of the way to it."""
    full, part, runs = [], [], []
    for seed in range(1, cfg.seeds + 1):
        whole, some = curve(bed, cfg, 1.0, seed, cfg.epochs), curve(bed, cfg, cfg.fraction, seed, 2 * cfg.epochs)
        last = whole[-5:].mean()
        target = last - 0.1 * (last - whole[0])
        full.append(reached(whole, target))
        part.append(reached(some, target))
        for name, values in (("all steps", whole), (f"{cfg.fraction:g} of the steps", some)):
            runs += [{"task": "to equal reward", "net": bed.name, "method": name, "seed": seed, "epoch": i,
                      "reward": float(value), "target": float(target)} for i, value in enumerate(values)]
    names = [f"{PLAIN}, microbatch 1", f"{BATCHED}, microbatch 1",
             f"{BATCHED}, microbatch 1, {cfg.fraction:g} of the steps"]
    variant = {"net": bed.name, "samples": cfg.samples, "steps": cfg.steps}
    epochs = dict(zip(names, (full, full, part), strict=True))
    price = {name: np.median(seconds[name]) for name in names}
    rows = []
    for name in names:
        about = {"task": "to equal reward", "method": name, "variant": variant}
        if np.isnan(epochs[name]).any():
            print(f"{bed.name}: {name} did not reach the reward in {int(np.isnan(epochs[name]).sum())} runs")
            continue
        spent = np.array(epochs[name]) * price[name]
        rows.append(row(**about, metric="epochs", samples=epochs[name], higher_is_better=False))
        rows.append(row(**about, metric="time", samples=spent, unit="s", higher_is_better=False))
        rows.append(row(**about, metric="speed-up", samples=np.array(full) * price[names[0]] / spent,
                        unit="times the first", higher_is_better=True))
    return Measured([{**one, "seeds": cfg.seeds} for one in rows], runs)


def main() -> None:
    given = OmegaConf.from_cli(sys.argv[1:])
    cfg = OmegaConf.create(DEFAULTS)
    OmegaConf.set_struct(cfg, True)
    cfg = OmegaConf.merge(cfg, QUICK if given.get("quick") else {}, given)
    torch.set_num_threads(1)
    begin, found = time.monotonic(), []
    for name in cfg.nets:
        bed = make_bed(name, cfg)
        measured, seconds = epoch_race(bed, cfg)
        found.append(measured)
        if "reward" in cfg.parts:
            found.append(reward_race(bed, cfg, seconds))
        print(markdown_table(join(found).rows), flush=True)
        if cfg.out:
            write(Path(cfg.out), join(found).rows, begin)


def write(out: Path, rows: list[dict[str, Any]], begin: float) -> None:
    about = environment()
    header = {key: about[key] for key in ("command", "commit", "versions", "machine")}
    write_results(out, header | {"seconds": round(time.monotonic() - begin, 1), "peak_memory_mb": peak_memory_mb(),
                                 "note": "busy machine: seconds are this process's own, ratios are of paired rounds"},
                  rows)


if __name__ == "__main__":
    main()
