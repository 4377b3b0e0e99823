"""Denoisers for alignment tests: a Gaussian whose mean is learnt, where every optimum is known, and tiny networks."""

from __future__ import annotations

import torch
from torch import nn

from dforce.core.denoiser import Denoiser, Precond
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.temporal import TemporalUNet
from dforce.nets.transformer import TransformerNet


class Gaussian(nn.Module, Denoiser):
    """The exact denoiser of tokens ~ N(mean, std^2) in every dimension, the mean being the one thing that is learnt.

    cond["static"]["shift"] [B, 1], where given, is added to the mean.
    """

    causal = recurrent = True

    def __init__(self, schedule, mean=0.0, std=1.0, dim=1, dtype=torch.float32):
        super().__init__()
        self.schedule, self.std = schedule, std
        self.mean = nn.Parameter(torch.full((dim,), mean, dtype=dtype))

    def init_state(self, batch, cond=None):
        shift = ((cond or {}).get("static") or {}).get("shift")
        return {"shift": self.mean.new_zeros(batch, 1) if shift is None else shift}

    def absorb(self, x, level, state, cond=None):
        return state

    def forward(self, x, level, state, cond=None):
        alpha, sigma = (table.to(x.dtype) for table in self.schedule(level, x))
        gain = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2)
        mean = self.mean.to(x.dtype).view(-1, *(1,) * (x.ndim - 3)) + state["shift"].view(-1, *(1,) * (x.ndim - 1))
        return mean + gain * (x - alpha * mean), state


class Vectors(nn.Module):
    """A small network over vector tokens, each on its own, told a class in cond["static"]["class"] [B]."""

    causal = recurrent = False

    def __init__(self, dim: int, width: int = 16, classes: int = 3):
        super().__init__()
        self.label = nn.Embedding(classes, width)
        self.inner = nn.Sequential(nn.Linear(dim + 1, width), nn.SiLU())
        self.outer = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, dim))

    def init_state(self, batch, cond=None):
        number = ((cond or {}).get("static") or {}).get("class")
        return {"class": torch.zeros(batch, dtype=torch.long) if number is None else number}

    def forward(self, x, label, state, cond=None):
        hidden = self.inner(torch.cat([x, label[..., None].to(x.dtype) / 10], -1)) + self.label(state["class"])[:, None]
        return self.outer(hidden), state


def networks(schedule, predict="v"):
    """One denoiser of each kind over tokens of three numbers."""
    torch.manual_seed(0)
    return {
        "recurrent": Precond(RecurrentNet((3,), width=16), schedule, predict),
        "transformer": Precond(TransformerNet((3,), width=16, depth=2, heads=2, context=4), schedule, predict),
        "temporal": Precond(TemporalUNet((3,), width=8, multipliers=(1, 2)), schedule, predict),
        "image": Precond(Vectors(3), schedule, predict),
    }
