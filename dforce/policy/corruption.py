"""What goes wrong in a world and on the way to a policy: pushes, lost or noisy observations, actions that come late."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any, Literal, NamedTuple

import numpy as np

from dforce.policy.protocol import Observation

BUILDABLE = ("Corruption",)  # by name, in a configuration
What = Literal["arm", "cube", "moved"]


@dataclass(frozen=True)
class Corruption:
    """One condition of an evaluation.

    missing: share of the observations that are lost; the first of an episode never is.
    burst: observations in a row that are lost together. at_decisions: lost are only observations at which what comes
    next is to be decided. parts: names of the parts (cameras, joints) that are lost; None: all.
    shown: what takes a lost one's place; "told": the policy is told that it is missing, as it is of nothing else;
    "last": the last that was seen, as of a frozen camera; "zeros": zeros, as a sensor that has failed reads, a black
    picture; "shifted", "blurred": of parts that are pictures, the picture moved sideways by `pixels`, or each pixel the
    mean of a square of 2 pixels + 1 a side.
    noise: standard deviation that is added to every observed number that is no pixel. sensor_std: noise that the policy
    is told of. delay: steps by which actions come late; until then the first is done.
    push: N s, an impulse in a level direction, on the arm's tool or on a cube (`pushed`), at a step below `until` that
    is drawn. moved: m by which a cube is moved to a side while it stands and the arm is at home, at the first decision
    from such a step on.
    """

    missing: float = 0.0
    burst: int = 1
    at_decisions: bool = False
    parts: tuple[str, ...] | None = None
    shown: Literal["told", "last", "zeros", "shifted", "blurred"] = "told"
    pixels: int = 8
    noise: float = 0.0
    sensor_std: float = 0.0
    delay: int = 0
    push: float = 0.0
    pushed: Literal["arm", "cube"] = "arm"
    moved: float = 0.0
    until: int = 100

    def __post_init__(self) -> None:
        least = min(self.noise, self.delay, self.sensor_std, self.push, self.moved)
        if not 0 <= self.missing <= 1 or min(self.burst, self.pixels, self.until) < 1 or least < 0:
            raise ValueError("want missing in 0..1, burst, pixels and until >= 1, noise, sensor_std, delay, push and "
                             f"moved >= 0, got {self}")


class Disturbance(NamedTuple):
    """Something that happens in the world between two steps.

    what: a push of the arm or of a cube, or a cube that is moved; vector: [3], N s or m; place: 0..1, which cube.
    """

    what: What
    vector: np.ndarray
    place: float


class Faults:
    """The faults of episodes side by side. Each row draws its own from its seed, the same for every policy."""

    def __init__(self, corruption: Corruption, seeds: Sequence[int]):
        self.corruption = corruption
        self._loss, self._noise = ([np.random.default_rng([seed, stream]) for seed in seeds] for stream in (1, 2))
        self._left = np.zeros(len(seeds), dtype=int)
        self._waiting = [_drawn(corruption, np.random.default_rng([seed, 4])) for seed in seeds]
        self._last: Any = None
        self._late: np.ndarray | None = None

    def observed(self, observation: Observation, due: np.ndarray) -> tuple[Observation, Any]:
        """The observation that arrives, and which rows [N] the policy is told are missing, by part where only some are;
        None: none. due: [N], a decision is. ValueError for parts that there are not."""
        how = self.corruption
        if how.noise:
            observation = _each(observation, self._noisy)
        lost = self._lost(due) if self._last is not None else np.zeros(len(due), dtype=bool)
        if self._last is None:
            self._last = observation
        arrived = self._replaced(observation, lost)
        self._last = arrived if how.shown == "last" else observation
        if how.shown != "told" or not how.missing:
            return arrived, None
        return arrived, lost if how.parts is None else dict.fromkeys(how.parts, lost)

    def _replaced(self, observation: Observation, lost: np.ndarray) -> Observation:
        """The observation with what is shown in the place of its lost parts."""
        how = self.corruption
        if how.parts is not None and not (isinstance(observation, Mapping) and set(how.parts) <= observation.keys()):
            raise ValueError(f"parts={how.parts}: the observation has "
                             f"{[*observation] if isinstance(observation, Mapping) else 'no parts'}")

        def shown(name: str | None, value: np.ndarray, last: np.ndarray) -> np.ndarray:
            if how.parts is not None and name not in how.parts:
                return value
            ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
                "zeros": np.zeros_like, "shifted": self._shifted, "blurred": self._blurred}
            other = ways[how.shown](value) if how.shown in ways else last
            return np.where(lost.reshape(-1, *[1] * (value.ndim - 1)), other, value)

        if isinstance(observation, Mapping):
            return {name: shown(name, value, self._last[name]) for name, value in observation.items()}
        return shown(None, observation, self._last)

    def _shifted(self, value: np.ndarray) -> np.ndarray:
        """Pictures [N, H, W, C] moved to the right; their left edge is repeated."""
        if not _pictures(value):
            return value
        columns = (np.arange(value.shape[2]) - self.corruption.pixels).clip(min=0)
        return value[:, :, columns]

    def _blurred(self, value: np.ndarray) -> np.ndarray:
        """Pictures whose pixels are means of squares; edges are repeated."""
        if not _pictures(value):
            return value
        reach, out = self.corruption.pixels, value.astype(float)
        for axis in (1, 2):
            size = out.shape[axis]
            out = np.mean([out.take((np.arange(size) + step).clip(0, size - 1), axis)
                           for step in range(-reach, reach + 1)], 0)
        return np.rint(out).astype(np.uint8)

    def _noisy(self, value: np.ndarray) -> np.ndarray:
        return value if _pictures(value) else value + self.corruption.noise * np.stack(
            [rng.standard_normal(value.shape[1:]) for rng in self._noise])

    def disturbances(self, row: int, step: int, due: bool) -> list[Disturbance]:
        """What happens before this step of an episode. due: a decision is."""
        happens = [each for when, each in self._waiting[row] if step == when and each.what != "moved"
                   or step >= when and due and each.what == "moved"]
        self._waiting[row] = [pair for pair in self._waiting[row] if not any(pair[1] is each for each in happens)]
        return happens

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


def _drawn(corruption: Corruption, rng: np.random.Generator) -> list[tuple[int, Disturbance]]:
    """The step from which on each disturbance is due."""
    out = []
    kinds: list[tuple[What, float]] = [(corruption.pushed, corruption.push), ("moved", corruption.moved)]
    for what, size in kinds:
        when, angle, place = int(rng.integers(corruption.until)), rng.uniform(0, 2 * pi), float(rng.random())
        if size:
            out.append((when, Disturbance(what, size * np.array([cos(angle), sin(angle), 0]), place)))
    return out


def _pictures(value: np.ndarray) -> bool:
    return value.dtype == np.uint8 and value.ndim == 4


def _each(observation: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    return {key: change(value) for key, value in observation.items()} if isinstance(observation, Mapping) else change(
        observation)
