"""Preference pairs of samples that exist already: scored by any reward, the best of each prompt against its worst."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dforce.align.on_policy import Samples
from dforce.align.preferences import Pairs, best_against_worst
from dforce.align.rewards.protocol import Reward, ask_reward
from dforce.core.denoiser import Cond


def scored(reward: Reward, x: Tensor, prompts: Sequence[Any], *, cond: Cond | None = None,
           metadata: Sequence[Any] | None = None) -> Samples:
    """Samples x [B, T, *E] with what `reward` (also `Weighted` or `Vote`) says of them; a group is a prompt.

    prompts: [B], also as text the same where they are the same. Raises RewardError, and ValueError for another number
    of prompts or none.
    """
    if not len(x):
        raise ValueError("there are no samples to score")
    if len(prompts) != len(x):
        raise ValueError(f"samples are compared within their prompt: got {len(prompts)} prompts for {len(x)} samples")
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(str, prompts)))}
    group = torch.tensor([number[str(prompt)] for prompt in prompts], device=x.device)
    value = ask_reward(reward, x, prompts, metadata)
    return Samples(x, cond, value, value, group, None)


def rank_pairs(reward: Reward, x: Tensor, prompts: Sequence[Any], *, k: int = 1, cond: Cond | None = None,
               metadata: Sequence[Any] | None = None) -> Pairs:
    """Of each prompt's samples x [B, T, *E] the k best against the k worst: what FashionDPO and ADHMR learn from.

    With OnPolicy the same is reward=Weighted(...) or Vote(...) and prepare=best_against_worst(k); `write_pairs` keeps
    the pairs in a file. Raises ValueError for a prompt that has fewer than 2 k samples.
    """
    return best_against_worst(k)(scored(reward, x, prompts, cond=cond, metadata=metadata))
