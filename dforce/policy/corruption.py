"""What goes wrong between a world and a policy: observations that are lost or noisy, actions that come late."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dforce.policy.protocol import Observation

BUILDABLE = ("Corruption",)  # by name, in a configuration


@dataclass(frozen=True)
class Corruption:
    """One condition of an evaluation.

    missing: share of the observations that are lost; the first of an episode never is.
    burst: observations in a row that are lost together. at_decisions: lost are only observations at which what comes
    next is to be decided. shown: what takes a lost one's place; "told": the policy is told that it is missing; "last":
    the last that was seen; "zeros": zeros, as a sensor that has failed reads; neither of these is told.
    noise: standard deviation that is added to every observed number. sensor_std: noise that the policy is told of.
    delay: steps by which actions come late; until then the first is done.
    """

    missing: float = 0.0
    burst: int = 1
    at_decisions: bool = False
    shown: Literal["told", "last", "zeros"] = "told"
    noise: float = 0.0
    sensor_std: float = 0.0
    delay: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.missing <= 1 or self.burst < 1 or min(self.noise, self.delay, self.sensor_std) < 0:
            raise ValueError(f"want missing in 0..1, burst >= 1, noise, sensor_std and delay >= 0, got {self}")


class Faults:
    """The faults of episodes side by side. Each row draws its own from its seed, the same for every policy."""

    def __init__(self, corruption: Corruption, seeds: Sequence[int]):
        self.corruption = corruption
        self._loss, self._noise = ([np.random.default_rng([seed, stream]) for seed in seeds] for stream in (1, 2))
        self._left = np.zeros(len(seeds), dtype=int)
        self._last: Any = None
        self._late: np.ndarray | None = None

    def observed(self, observation: Observation, due: np.ndarray) -> tuple[Observation, np.ndarray | None]:
        """The observation that arrives, and which rows [N] the policy is told are missing. due: [N], a decision is."""
        how = self.corruption
        if how.noise:
            observation = _each(observation, lambda value: value + how.noise * np.stack(
                [rng.standard_normal(value.shape[1:]) for rng in self._noise]))
        lost = self._lost(due) if self._last is not None else np.zeros(len(due), dtype=bool)
        if self._last is None:
            self._last = observation
        replaced = _each(self._last, np.zeros_like) if how.shown == "zeros" else self._last

        def arriving(value: np.ndarray, other: np.ndarray) -> np.ndarray:
            return np.asarray(np.where(lost.reshape(-1, *[1] * (value.ndim - 1)), other, value))

        arrived = _each(observation, arriving, replaced)
        self._last = arrived if how.shown == "last" else observation
        return arrived, lost if how.shown == "told" and how.missing else None

    def _lost(self, due: np.ndarray) -> np.ndarray:
        how, u = self.corruption, np.array([rng.random() for rng in self._loss])
        if how.at_decisions:
            return due & (u < how.missing)
        # in the long run `missing` of all observations are lost, since no burst begins within another
        begin = u < how.missing / (how.burst - how.missing * (how.burst - 1))
        self._left = np.where(self._left > 1, self._left - 1, np.where(begin, how.burst, 0))
        return self._left > 0

    def executed(self, actions: np.ndarray) -> np.ndarray:
        """The actions [N, C, A] that are done now."""
        if not self.corruption.delay:
            return actions
        late = self._late if self._late is not None else np.repeat(actions[:, :1], self.corruption.delay, 1)
        waiting = np.concatenate([late, actions], 1)
        self._late = waiting[:, actions.shape[1]:]
        return waiting[:, :actions.shape[1]]


def _each(observation: Any, change: Callable[..., np.ndarray], *others: Any) -> Any:
    if isinstance(observation, Mapping):
        return {key: change(value, *(other[key] for other in others)) for key, value in observation.items()}
    return change(observation, *others)
