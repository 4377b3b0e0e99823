"""Alignment on the one transition: traces, losses, on-policy batches, adapters, and search at test time."""

from .advantage import GroupAdvantage, PerPromptStats, clip_advantage, standardised
from .backprop import direct_reward, starts, through
from .edict import Edict, Optimised, doodl
from .forward import denoising_error, draw_levels
from .guide import backward_guided, classifier_guided, time_travel
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
from .lowrank import (
    adapter_state,
    add_lowrank,
    disabled,
    fold,
    load_adapters,
    merge,
    save_adapters,
    unmerge,
    without_adapters,
)
from .objective import AlignObjective, nft, policy_gradient, preference, regression, stepwise_preference
from .on_policy import Mismatch, OffPolicyError, check_on_policy, mismatch, refresh
from .preference import Pairs, Preferences, best_against_worst, read_pairs, write_pairs
from .reward import RewardError, ask_reward
from .search import Best, best_of_n, demon, descend
from .smc import Particles, steer, steering
from .source import OnPolicy, Query, Sampler, Samples
from .stochastic import dance, flow_sde, window
from .trace import Replay, Trace, kl, record, replay, subsample

__all__ = [
    "AlignObjective",
    "Best",
    "Edict",
    "GroupAdvantage",
    "Mismatch",
    "OffPolicyError",
    "OnPolicy",
    "Optimised",
    "Pairs",
    "Particles",
    "PerPromptStats",
    "Preferences",
    "Query",
    "Replay",
    "RewardError",
    "Sampler",
    "Samples",
    "Trace",
    "adapter_state",
    "add_lowrank",
    "ask_reward",
    "backward_guided",
    "best_against_worst",
    "best_of_n",
    "check_on_policy",
    "classifier_guided",
    "clip_advantage",
    "clip_fraction",
    "d3po",
    "dance",
    "ddpo_is",
    "ddpo_sf",
    "demon",
    "denoising_error",
    "descend",
    "diffusion_dpo",
    "diffusion_nft",
    "direct_reward",
    "disabled",
    "doodl",
    "dpok",
    "draw_levels",
    "exponential_weight",
    "filtered_weight",
    "flow_sde",
    "fold",
    "kl",
    "kl_penalty",
    "load_adapters",
    "merge",
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
    "save_adapters",
    "standardised",
    "starts",
    "steer",
    "steering",
    "stepwise_preference",
    "subsample",
    "through",
    "time_travel",
    "unmerge",
    "weighted_regression",
    "window",
    "without_adapters",
    "write_pairs",
]
