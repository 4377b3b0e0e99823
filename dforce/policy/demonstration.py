"""A policy that looks once and then repeats the nearest demonstration: what seeing alone the beginning is worth."""

import numpy as np
import torch

from dforce.core.tree import State
from dforce.data.episodes import Episodes
from dforce.data.token_layout import parts_of
from dforce.policy.protocol import Observation, observation_vectors


class NearestDemonstration:
    """Repeats, in open loop, the actions of the episode whose first observation is nearest, and then its last action.

    Distances are measured in standard deviations of the first observations. chunk: actions at a time.
    """

    def __init__(self, episodes: Episodes, *, chunk: int):
        self.parts, self.chunk = parts_of(episodes.names()[0]), chunk
        begin = episodes.observations[episodes.first_observation].astype(np.float64)
        self._scale = begin.std(0).clip(min=1e-6)
        self._begin = begin / self._scale
        self._first, self._last = episodes.first_step, episodes.first_step + episodes.lengths - 1
        self._actions = episodes.actions

    def reset(self, n: int) -> State:
        return {"episode": torch.full((n,), -1), "step": torch.zeros(n, dtype=torch.long)}

    def act(self, observation: Observation, state: State) -> tuple[np.ndarray, State]:
        values = observation_vectors(observation, self.parts, len(state["step"])) / self._scale
        nearest = ((values[:, None] - self._begin) ** 2).sum(-1).argmin(1)
        episode = torch.where(state["episode"] < 0, torch.from_numpy(nearest), state["episode"])
        chosen = episode.numpy()  # numpy takes a tensor of one number for a number
        step = self._first[chosen][:, None] + state["step"].numpy()[:, None] + np.arange(self.chunk)
        return self._actions[np.minimum(step, self._last[chosen][:, None])], {
            "episode": episode, "step": state["step"] + self.chunk}
