"""Alignment on the one transition: traces, losses, on-policy batches, adapters, and search at test time."""

from .forward import denoising_error, draw_levels
from .losses import (
    clip_fraction,
    d3po,
    ddpo_is,
    ddpo_sf,
    diffusion_dpo,
    diffusion_nft,
    dpok,
    exponential_weight,
    filtered_weight,
    kl_penalty,
    optimality,
    weighted_regression,
)
from .on_policy import Mismatch, OffPolicyError, check_on_policy, mismatch, refresh
from .stochastic import dance, flow_sde, window
from .trace import Replay, Trace, kl, record, replay, subsample

__all__ = [
    "Mismatch",
    "OffPolicyError",
    "Replay",
    "Trace",
    "check_on_policy",
    "clip_fraction",
    "d3po",
    "dance",
    "ddpo_is",
    "ddpo_sf",
    "denoising_error",
    "diffusion_dpo",
    "diffusion_nft",
    "dpok",
    "draw_levels",
    "exponential_weight",
    "filtered_weight",
    "flow_sde",
    "kl",
    "kl_penalty",
    "mismatch",
    "optimality",
    "record",
    "refresh",
    "replay",
    "subsample",
    "weighted_regression",
    "window",
]
