"""A linear policy with a filter: enough to balance a pendulum, and to show how a policy is used."""

from collections.abc import Sequence

import numpy as np
import torch

from dforce.core.tree import State
from dforce.policy.protocol import Observation


class LinearPolicy:
    """action = clip(gain @ y, -limit, limit), with y the observation, smoothed over time.

    gain: [A, O]. limit: largest size of an action. smoothing: y <- smoothing * y + (1 - smoothing) * observation, from
    the first observation of an episode on; 0 takes every observation as it is.
    """

    def __init__(self, gain: Sequence[Sequence[float]], *, limit: float = 1.0, smoothing: float = 0.0):
        self.gain, self.limit, self.smoothing = torch.tensor(gain, dtype=torch.float64), limit, smoothing
        if self.gain.ndim != 2 or limit <= 0 or not 0 <= smoothing < 1:
            raise ValueError(f"want gain [A, O], limit > 0 and smoothing in [0, 1), got a gain of shape "
                             f"{[*self.gain.shape]}, limit={limit}, smoothing={smoothing}")

    def reset(self, n: int) -> State:
        return {"y": torch.zeros(n, self.gain.shape[1], dtype=torch.float64), "begun": torch.zeros(n, dtype=torch.bool)}

    def act(self, observation: Observation, state: State) -> tuple[np.ndarray, State]:
        now = torch.as_tensor(np.asarray(observation), dtype=torch.float64)
        if now.shape != state["y"].shape or not now.isfinite().all():
            raise ValueError(f"an observation is {[*state['y'].shape]} finite numbers, got {[*now.shape]}, "
                             f"{int((~now.isfinite()).sum())} of them not finite")
        y = torch.where(state["begun"][:, None], self.smoothing * state["y"] + (1 - self.smoothing) * now, now)
        action = (y[:, None] * self.gain).sum(-1).clamp(-self.limit, self.limit)
        return action.numpy(), {"y": y, "begun": torch.ones_like(state["begun"])}
