"""How large the measured things are, and the maze planner's own networks and batches at those sizes."""

from typing import NamedTuple

import torch

from dforce.core.denoiser import Cond, Precond
from dforce.core.schedule import Schedule, linear
from dforce.data.batch import Batch
from dforce.nets.recurrent import RecurrentNet

OBSERVATION, ACTION = 4, 2  # of a maze: (x, y, vx, vy) and two forces


class Sizes(NamedTuple):
    """tokens, stack: T tokens of `stack` environment steps, so of stack * 6 numbers. widths: of `RecurrentNet`; 448 has
    the 3 million parameters of the official maze network, 192 is our default. plan_widths: those that sampling and
    guidance are timed at; width: that of whole plans. rounds, seconds: of a race (see `race`). sides: of the square
    matrices whose products show what the machine can do. bf16: whether bfloat16
    runs too; where the machine emulates it, one step of training takes minutes."""

    tokens: int = 60
    stack: int = 10
    widths: tuple[int, ...] = (448, 256, 192)
    plan_widths: tuple[int, ...] = (192, 448)
    width: int = 192
    train_batch: int = 128
    batches: tuple[int, ...] = (1, 32)
    steps: int = 50
    draws: int = 16
    episodes: int = 200
    episode_steps: int = 5000
    rounds: int = 9
    seconds: float = 60.0
    sides: tuple[int, ...] = (1024, 2048)
    device: torch.device = torch.device("cpu")
    bf16: bool = True

    @property
    def numbers(self) -> int:
        """How many numbers a token has."""
        return self.stack * (ACTION + OBSERVATION)


# Runs everything in seconds; its times mean nothing.
QUICK = Sizes(tokens=6, stack=2, widths=(16,), plan_widths=(16,), width=16, train_batch=4, batches=(2,), steps=4,
              draws=4, episodes=4, episode_steps=40, rounds=3, seconds=1.0, sides=(64,))


def maze_denoiser(sizes: Sizes, width: int) -> tuple[Precond, Schedule]:
    """The untrained default planner (configs/verbs/train/train.yaml) at a width: the same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = RecurrentNet((sizes.numbers,), static={"start": OBSERVATION}, width=width)
    schedule = linear()
    return Precond(net, schedule).to(sizes.device), schedule.to(sizes.device)


def parameters(denoiser: Precond) -> int:
    return sum(parameter.numel() for parameter in denoiser.parameters())


def random_batch(sizes: Sizes, size: int) -> Batch:
    """Standard normal tokens and starts; what they are does not change what a step costs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(size, sizes.tokens, sizes.numbers, generator=generator)
    start = torch.randn(size, OBSERVATION, generator=generator)
    cond: Cond = {"static": {"start": start}}
    mask, first = torch.ones(x.shape[:2], dtype=torch.bool), torch.ones(size, dtype=torch.bool)
    return Batch(x, mask, cond, first).to(sizes.device)
