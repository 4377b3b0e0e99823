"""From rewards to advantages: how much better than expected a sample was.

A credit is (reward [B] float64, prompts, group [B]) -> [B], for `OnPolicy`; a constant reward gives exactly 0.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Credit = Callable[[Tensor, Sequence[Any], Tensor], Tensor]


def standardised(reward: Tensor, prompts: Sequence[Any] = (), group: Tensor | None = None) -> Tensor:
    """(R - mean) / std over the whole batch."""
    return _over(reward, reward, 1e-6)


class GroupAdvantage:
    """GRPO: (R - mean of its group) / (std + eps); global_std: that of the whole batch, so that none is blown up."""

    def __init__(self, *, global_std: bool = False, eps: float = 1e-4):
        self.global_std, self.eps = global_std, eps

    def __call__(self, reward: Tensor, prompts: Sequence[Any], group: Tensor) -> Tensor:
        advantage = torch.empty_like(reward)
        for member in (group == each for each in group.unique()):
            if int(member.sum()) < 2:
                raise ValueError("a group of one has no advantage over itself: take group >= 2, or another credit")
            members = reward[member]
            spread = reward if self.global_std else members
            advantage[member] = _over(members, members, self.eps, spread=float(spread.std(correction=0)))
        return advantage


class PerPromptStats:
    """DDPO's running statistics (Black et al. 2023, appendix D.1): each prompt has its own mean and std.

    Of its last `buffer` rewards, and of all new ones where these are more, once there are `min_count`; before that, the
    batch's. A value with state: `state_dict` is JSON-able, for a run that goes on.
    """

    def __init__(self, buffer: int = 16, min_count: int = 16, *, eps: float = 1e-6):
        if not 1 <= min_count <= buffer:
            raise ValueError(f"min_count must lie in 1..buffer, got min_count={min_count}, buffer={buffer}")
        self.buffer, self.min_count, self.eps = buffer, min_count, eps
        self.seen: dict[str, deque[float]] = {}

    def __call__(self, reward: Tensor, prompts: Sequence[Any], group: Tensor | None = None) -> Tensor:
        if len(prompts) != len(reward):
            raise ValueError(f"statistics are kept by prompt: got {len(prompts)} prompts for {len(reward)} rewards")
        names = [str(prompt) for prompt in prompts]
        advantage = torch.empty_like(reward)
        for name in dict.fromkeys(names):
            members = torch.tensor([each == name for each in names], device=reward.device)
            new = reward[members].tolist()
            before = self.seen.setdefault(name, deque(maxlen=self.buffer))
            kept = torch.tensor([*before, *new][-max(self.buffer, len(new)):], dtype=reward.dtype, device=reward.device)
            before.extend(new)
            advantage[members] = _over(reward[members], kept if len(kept) >= self.min_count else reward, self.eps)
        return advantage

    def state_dict(self) -> dict[str, list[float]]:
        return {name: list(values) for name, values in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        self.seen = {name: deque(values, maxlen=self.buffer) for name, values in state.items()}


def clip_advantage(advantage: Tensor, limit: float) -> Tensor:
    """Advantages within +-limit (5 in DDPO): one lucky sample shall not make the update."""
    if limit <= 0:
        raise ValueError(f"the limit of advantages must be positive, got {limit}")
    return advantage.clamp(-limit, limit)


def _over(reward: Tensor, population: Tensor, eps: float, *, spread: float | None = None) -> Tensor:
    """reward [n] against the mean of a population [m] that contains it, over `spread` (None: its std)."""
    if not bool(population.max() > population.min()):
        return torch.zeros_like(reward)
    return (reward - population.mean()) / ((float(population.std(correction=0)) if spread is None else spread) + eps)
