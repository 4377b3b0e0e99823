"""What `align.py` beside this races against: DDPO-IS as a plain loop over steps, and what is tuned."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.align import Query, standardised
from dforce.align.on_policy import SAMPLE, START_SALT
from dforce.align.rewards.builtin import Jpeg
from dforce.core.denoiser import Cond, Precond
from dforce.core.noise import Noise, seed_of
from dforce.core.schedule import Schedule, cosine
from dforce.core.transition import Gaussian, transition
from dforce.core.tree import select
from dforce.images import class_cond, load_model
from dforce.nets.diffusers import PretrainedNet


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
    learn: int  # samples of an epoch, where rewards are compared

    def ask(self, count: int, generator: torch.Generator) -> Query:
        """As many prompts: classes at random, or nothing for a model that is told none."""
        if not self.classes:
            return Query([""] * count)
        number = torch.randint(0, self.classes, (count,), generator=generator)
        return Query(number.tolist(), class_cond(number))


def brightness(samples: Tensor, prompts: Any, metadata: Any) -> Tensor:
    return samples.flatten(1).mean(1)


def make_bed(name: str, steps: int) -> Bed:
    """`steps` steps that have a density, and the one to level 0, which has none. ValueError for other names."""
    if name == "mlp":
        model = load_model("digits")
        path = model.schedule.grid(steps + 1, "index")[:, None]
        return Bed(name, model.denoiser, model.schedule, path, (1, *model.shape), Jpeg(), len(model.classes), 3e-4, 64)
    if name != "unet":
        raise ValueError(f"nets are mlp and unet, got {name!r}")
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(16, 32), layers_per_block=1,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8)
    schedule = cosine(1000)
    denoiser = Precond(PretrainedNet(unet), schedule, "v").eval()
    path = schedule.grid(steps + 1, "index")[:, None]
    return Bed(name, denoiser, schedule, path, (1, 1, 8, 8), brightness, 0, 1e-3, 16)


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
        """States [B, T, *E] before and after every step, log-probs [B, T] of every step but the last."""
        noise, token = Noise(seed_of(0, self.epoch, SAMPLE)), torch.zeros(1, dtype=torch.long)
        xs, old = [noise(0, token, torch.empty(self.samples, *self.bed.shape), salt=START_SALT)], []
        for step in range(len(self.bed.matrix) - 1):
            kernel = self.kernel(xs[-1], cond, step)
            xs.append(kernel.sample(noise(step, token, xs[-1])))
            old.append(Gaussian(kernel.mean.double(), kernel.std.double()).log_prob(xs[-1].double()))
        return xs, old[:-1]

    def kernel(self, x: Tensor, cond: Cond | None, step: int) -> Gaussian:
        level, to = (self.bed.matrix[at].expand(len(x), 1) for at in (step, step + 1))
        x0, _ = self.denoiser(x, level, self.denoiser.init_state(len(x), cond), cond)
        return transition(self.bed.schedule, x, x0, level, to)
