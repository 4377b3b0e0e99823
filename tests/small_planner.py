"""A planner around a small network that was never trained: its plans are no good, but laws of planning hold."""

from __future__ import annotations

import numpy as np
import torch

from dforce.benchmarks.speed.sampling import Counted
from dforce.core.denoiser import Precond
from dforce.core.schedule import cosine
from dforce.data.normalize import Affine
from dforce.nets.recurrent import RecurrentNet
from dforce.nets.transformer import TransformerNet

LAYOUT = {"stack": 2, "action": [0, 2], "observation": [2, 6]}
STARTS = np.random.default_rng(0).normal(size=(5, 4))
GOALS = np.random.default_rng(1).normal(size=(5, 2))


def small(kind, *, causal=True, **settings):
    """`kind` of planner with 4 steps a token of two environment steps, scale .2 unless said."""
    torch.manual_seed(0)
    schedule = cosine(60)
    net = RecurrentNet((12,), width=16, static={"start": 4}) if causal else TransformerNet(
        (12,), width=16, depth=1, heads=2, static={"start": 4}, causal=False)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            parameter.mul_(1.5)  # far from linear, so that nothing holds by chance
    normalizer = Affine([0.1, -0.2, 0.5, 0.3, 0.0, 0.1], [0.5, 0.6, 1.1, 0.9, 0.7, 0.8])
    return kind(Precond(net, schedule, "v"), schedule, normalizer, LAYOUT,
                **{"steps": 4, "scale": 0.2, **settings})


def tokens_per_plan(planner, obs, goal, remaining):
    """Tokens that the network evaluates for a plan, on average: what to hold equal when planners are compared."""
    counted = Counted(planner.denoiser)
    planner.with_(denoiser=counted)(obs, goal, remaining, np.random.default_rng(0))
    return counted.tokens / len(obs)
