"""What a policy is asked: an action for every observation, with a state that the caller keeps between calls."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from dforce.core.tree import State

Observation = np.ndarray | Mapping[str, np.ndarray]  # [N, O], or a dict of arrays [N, ...]


class Policy(Protocol):
    """Acts in N episodes side by side; the rows of one call know nothing of one another.

    The state is a value, a nest of tensors with N rows each (`dforce.core.tree`): a caller resets the rows whose
    episode begins anew, forks it to try several futures, and drops the rows of episodes that are over.
    """

    def reset(self, n: int) -> State:
        """The state of n episodes that begin."""

    def act(self, observation: Observation, state: State) -> tuple[np.ndarray, State]:
        """The actions [N, A] at this observation, and the state after it."""
