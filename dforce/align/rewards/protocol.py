"""The protocol of rewards, and the call that checks their answers: one finite number for each sample."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.core.tree import private

Reward = Callable[[Tensor, Sequence[Any], Sequence[Any]], Any]  # (samples [B, ...], prompts, metadata) -> [B]


class Subject(NamedTuple):
    """What a named reward is made for."""

    shape: tuple[int, ...]         # (C, H, W) of an image
    classes: tuple[str, ...] = ()  # names
    data: str = ""                 # name or folder of the images
    judge: Any = None              # a classifier that judges classes and is no part of any reward
    seed: int = 0
    device: torch.device | str = "cpu"
    few: bool = False              # as little work as goes
    encoder: Callable[[str], Any] | None = None  # name -> the network that a head of ratings was fitted on
    settings: Mapping[str, Mapping[str, Any]] | None = None  # of published rewards, by name

    @property
    def side(self) -> int:
        """Pixels of the longer side."""
        return max(self.shape[1:])


class Watched(NamedTuple):
    """A reward to tune on, and the same wish by another instrument, None where there is none."""

    tuned: Reward
    held_out: Reward | None = None


TRL = "; a reward of TRL's, which answers with (rewards, metadata), goes through dforce.images.trl.reward_from_trl"


class RewardError(RuntimeError):
    """A reward raised, or answered with something else than one finite number for each sample."""


def ask_reward(reward: Reward, samples: Tensor, prompts: Sequence[Any], metadata: Sequence[Any] | None = None, *,
               where: str = "") -> Tensor:
    """reward(copies, prompts, metadata) -> [B] float64 on the samples' device; RewardError, which says `where`."""
    metadata = [None] * len(samples) if metadata is None else metadata
    name = getattr(reward, "__qualname__", type(reward).__name__)
    label = f"the reward {name}{f' in {where}' if where else ''}"
    try:
        answer = reward(samples.clone(), private(list(prompts)), private(list(metadata)))
    except Exception as error:
        raise RewardError(f"{label} raised {type(error).__name__}: {error}. The weights are those before it") from error
    try:
        values = torch.as_tensor(answer, dtype=torch.float64, device=samples.device).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(f"{label} answered with a {type(answer).__name__}, which is no list of numbers"
                          f"{TRL if isinstance(answer, tuple) else ''}") from error
    if values.shape != samples.shape[:1]:
        raise RewardError(f"{label} must answer with one number for each of the {len(samples)} samples, "
                          f"[{len(samples)}], got {[*values.shape]}")
    if not bool(values.isfinite().all()):
        bad = (~values.isfinite()).nonzero().flatten().tolist()
        raise RewardError(f"{label} is not finite for {len(bad)} of {len(values)} samples (the first at {bad[0]}: "
                          f"{float(values[bad[0]])}, prompt {prompts[bad[0]]!r}). The weights are those before it")
    return values
