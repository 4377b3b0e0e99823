"""A check that the policy in training is the one that sampled, made before the first update on every trace.

It finds another guidance scale than in sampling, states kept in bfloat16, autocast on one side only, dropout.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dforce.align.trace import Replay, Trace, replay
from dforce.core.denoiser import Denoiser
from dforce.core.schedule import Schedule

TOLERANCE = 0.01  # of a token's density ratio: a hundredth of a nat, where clips are about one nat


class OffPolicyError(ValueError):
    """The denoiser does not give the log-probabilities that its trace recorded."""


class Mismatch(NamedTuple):
    """How far the ratios p_now / p_recorded of a token's step are from 1."""

    largest: float  # max |ratio - 1|
    mean: float     # mean |ratio - 1|
    outside: float  # share of steps whose |log-ratio| exceeds `clip_nats`
    cells: int      # how many steps of tokens were compared


@torch.no_grad()
def mismatch(trace: Trace, denoiser: Denoiser, schedule: Schedule, *, steps: Tensor | None = None,
             rows: int | None = None, autocast: torch.dtype | None = None, clip_nats: float = 1.0) -> Mismatch:
    """The error of the ratio on-policy: right after recording it is rounding, and not being the same function."""
    return _measure(replay(trace, denoiser, schedule, steps=steps, rows=rows, autocast=autocast), clip_nats)


def check_on_policy(trace: Trace, denoiser: Denoiser, schedule: Schedule, *, tolerance: float = TOLERANCE,
                    steps: Tensor | None = None, rows: int | None = None, autocast: torch.dtype | None = None,
                    clip_nats: float = 1.0) -> Mismatch:
    """The mismatch; OffPolicyError, which says what to do, where a |ratio - 1| is over `tolerance`."""
    error = mismatch(trace, denoiser, schedule, steps=steps, rows=rows, autocast=autocast, clip_nats=clip_nats)
    if not error.largest <= tolerance:
        raise OffPolicyError(
            f"|ratio - 1| is up to {error.largest:.3g} (mean {error.mean:.3g}, {error.outside:.1%} beyond the clip, "
            f"{error.cells} steps of tokens) where the policy is to be the one that sampled (tolerance {tolerance:g}). "
            "Either the weights have changed since, so record a new trace before the first update; or sampling and "
            "training are not the same function: compare guidance scales, dropout (eval mode in both) and autocast "
            "(the same dtype in record and replay, or None). If only rounding is left, refresh(trace, ...) takes the "
            "log-probabilities anew in the batch shape of training")
    return error


@torch.no_grad()
def refresh(trace: Trace, denoiser: Denoiser, schedule: Schedule, *, rows: int | None = None,
            autocast: torch.dtype | None = None) -> Trace:
    """The trace with log-probs as `replay` gives them now, in its batch shape. For the weights that sampled only."""
    return trace._replace(log_prob=replay(trace, denoiser, schedule, rows=rows, autocast=autocast).log_prob)


def _measure(replayed: Replay, clip_nats: float) -> Mismatch:
    moving = replayed.dims > 0
    nats = (replayed.log_prob - replayed.old)[moving]
    if not len(nats):
        return Mismatch(0.0, 0.0, 0.0, 0)
    away = (nats.exp() - 1).abs().nan_to_num(math.inf)
    return Mismatch(float(away.max()), float(away.mean()), float((nats.abs() > clip_nats).double().mean()), len(nats))
