"""Alignment on the one transition: traces, losses, on-policy batches, adapters, and search at test time."""

from .advantage import GroupAdvantage, PerPromptStats, clip_advantage, standardised
from .backprop import direct_reward, starts, through
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
from .objective import AlignObjective, nft, policy_gradient, preference, regression, stepwise_preference
from .on_policy import Mismatch, OffPolicyError, check_on_policy, mismatch, refresh
from .preference import Pairs, Preferences, best_against_worst, read_pairs, write_pairs
from .reward import RewardError, ask_reward
from .source import OnPolicy, Query, Sampler, Samples
from .stochastic import dance, flow_sde, window
from .trace import Replay, Trace, kl, record, replay, subsample

__all__ = [
    "AlignObjective",
    "GroupAdvantage",
    "Mismatch",
    "OffPolicyError",
    "OnPolicy",
    "Pairs",
    "PerPromptStats",
    "Preferences",
    "Query",
    "Replay",
    "RewardError",
    "Sampler",
    "Samples",
    "Trace",
    "ask_reward",
    "best_against_worst",
    "check_on_policy",
    "clip_advantage",
    "clip_fraction",
    "d3po",
    "dance",
    "ddpo_is",
    "ddpo_sf",
    "denoising_error",
    "diffusion_dpo",
    "diffusion_nft",
    "direct_reward",
    "dpok",
    "draw_levels",
    "exponential_weight",
    "filtered_weight",
    "flow_sde",
    "kl",
    "kl_penalty",
    "mismatch",
    "nft",
    "optimality",
    "policy_gradient",
    "preference",
    "read_pairs",
    "record",
    "refresh",
    "regression",
    "replay",
    "standardised",
    "starts",
    "stepwise_preference",
    "subsample",
    "through",
    "weighted_regression",
    "window",
    "write_pairs",
]
