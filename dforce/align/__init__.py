"""Alignment on the one transition: traces, losses, on-policy batches, adapters, and search at test time."""

from dforce.align.advantage import GroupAdvantage, PerPromptStats, clip_advantage, standardised
from dforce.align.backprop import direct_reward, starts, through
from dforce.align.objectives import denoising_error, draw_levels
from dforce.align.lora import (adapter_state, add_lowrank, disabled, fold, load_adapters, merge, save_adapters, unmerge,
                               without_adapters)
from dforce.align.losses import (clip_fraction, d3po, ddpo_is, ddpo_sf, diffusion_dpo, diffusion_nft, dpok,
                                 exponential_weight, filtered_weight, kl_penalty, optimality, weighted_regression)
from dforce.align.objectives import AlignObjective, nft, policy_gradient, preference, regression, stepwise_preference
from dforce.align.on_policy import OnPolicy, Query, Sampler, Samples
from dforce.align.policy_check import Mismatch, OffPolicyError, check_on_policy, mismatch, refresh
from dforce.align.preferences import Pairs, Preferences, best_against_worst, read_pairs, write_pairs
from dforce.align.rewards.builtin import (ClassLogProb, Jpeg, Spread, class_index, jpeg_compressibility,
                                          jpeg_incompressibility, per_frame)
from dforce.align.rewards.combined import Scale, Vote, Weighted, scales_of
from dforce.align.rewards.learnt import BradleyTerry, BradleyTerryLoss, FittedPairs, fit_bradley_terry, split_pairs
from dforce.align.rewards.network import RewardNet
from dforce.align.rewards.protocol import RewardError, ask_reward
from dforce.align.rewards.ratings import (FittedRatings, MeanRating, RatingHead, Ratings, fit_rating, read_ratings,
                                          spearman, write_ratings)
from dforce.align.rewards.store import find_reward, load_reward, needed_encoder, save_reward
from dforce.align.sde import cps, dance, flow_sde, window
from dforce.align.search.best_of_n import Best, best_of_n
from dforce.align.search.demon import demon, descend
from dforce.align.search.edict import Edict, Optimised, doodl
from dforce.align.search.smc import Particles, steer, steering
from dforce.align.trace import Replay, Trace, kl, record, replay, subsample
from dforce.align.trajectory import trace_of
from dforce.guidance.universal import backward_guided, classifier_guided, time_travel
