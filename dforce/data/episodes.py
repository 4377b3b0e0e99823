"""Episodes of different lengths in packed arrays: every source of trajectories is read into them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Episodes:
    """E episodes of S_e steps each, packed one after another; N = sum of S_e.

    observations: [N + E, O], S_e + 1 rows an episode (the last is what the last action led to).
    actions: [N, A]. rewards: [N]. terminations, truncations: [N] bool. lengths: [E], the S_e.
    infos: {name: [N, ...]}, further values of a step, at the time when its action was taken.
    about: JSON-able facts about all of them: dataset, env, dt, observation_names, action_names, ...
    images: {camera: uint8 [N + E, H, W, 3]}, what each camera saw at every observation: arrays, memory maps or whatever
        has shape, dtype and length and gives rows for an array of whole numbers (`EpisodePictures` reads them from a
        file). Observations then hold the rest, and have no columns, [N + E, 0], where there is none.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    lengths: np.ndarray
    infos: dict[str, np.ndarray] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    images: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps, count = int(np.sum(self.lengths)), len(self.lengths)
        if not count or np.min(self.lengths) < 1:
            raise ValueError(f"episodes must have at least one step each, got lengths {list(self.lengths[:8])}")
        if self.observations.ndim != 2 or self.actions.ndim != 2:
            shapes = (self.observations.shape, self.actions.shape)
            raise ValueError(f"observations and actions must be packed as [rows, width], got {shapes[0]}, {shapes[1]}")
        arrays = {k: getattr(self, k) for k in ("observations", "actions", "rewards", "terminations", "truncations")}
        if not self.observations.shape[1] and not self.images:
            raise ValueError("episodes need observations: columns of numbers, or images of a camera")
        for name, pictures in self.images.items():
            kind, shape = getattr(pictures, "dtype", type(pictures).__name__), tuple(getattr(pictures, "shape", ()))
            if kind != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
                raise ValueError(f"images of {name!r} are {kind} of shape {shape}, wanted are uint8 (rows, height, "
                                 "width, 3), 0 to 255")
        for name, array in {**arrays, **self.infos, **self.images}.items():
            wanted = steps + count if name == "observations" or name in self.images else steps
            if len(array) != wanted:
                raise ValueError(f"{name} has {len(array)} rows, but {count} episodes of {steps} steps in all need "
                                 f"{wanted} (observations have one row more than steps in each episode)")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def steps(self) -> int:
        """N, steps of all episodes."""
        return len(self.actions)

    @property
    def first_step(self) -> np.ndarray:
        """Row of each episode's first action: [E]."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def first_observation(self) -> np.ndarray:
        """Row of each episode's first observation: [E]."""
        return self.first_step + np.arange(len(self.lengths))

    def episode(self, e: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Observations [S+1, O], actions [S, A] and rewards [S] of episode e, as views."""
        step, row, length = int(self.first_step[e]), int(self.first_observation[e]), int(self.lengths[e])
        return (self.observations[row : row + length + 1], self.actions[step : step + length],
                self.rewards[step : step + length])

    def chains(self) -> tuple[np.ndarray, np.ndarray]:
        """Episodes of equal length as arrays: observations [E, S + 1, O] and actions [E, S, A]."""
        count = len(self)
        return (self.observations.reshape(count, -1, self.observations.shape[-1]),
                self.actions.reshape(count, -1, self.actions.shape[-1]))

    def names(self) -> tuple[list[str], list[str]]:
        """Column names of observations and actions; numbered where the source named none."""
        width = self.observations.shape[1], self.actions.shape[1]
        observation = self.about.get("observation_names") or [f"observation[{i}]" for i in range(width[0])]
        action = self.about.get("action_names") or [f"action[{i}]" for i in range(width[1])]
        return list(observation), list(action)


def pack(observations: Sequence, actions: Sequence, rewards: Sequence, *, terminations: Sequence | None = None,
         truncations: Sequence | None = None, infos: Mapping[str, Sequence] | None = None,
         about: dict | None = None, images: Mapping[str, Any] | None = None) -> Episodes:
    """Episodes from one array per episode: observations [S+1, O], actions [S, A], rewards [S], infos [S, ...].

    A list of arrays of different lengths, or one array [C, S+1, ...]. Without flags every last step is truncated.
    images: camera -> one array [S+1, H, W, 3] per episode, or all of them packed, [N + E, H, W, 3].
    """
    lengths = np.array([len(a) for a in actions], dtype=np.int64)
    if len(observations) != len(actions) or len(rewards) != len(actions):
        counts = f"{len(observations)}, {len(actions)}, {len(rewards)}"
        raise ValueError(f"as many episodes of observations, actions and rewards are needed, got {counts}")
    for e, (o, length) in enumerate(zip(observations, lengths, strict=True)):
        if len(o) != length + 1:
            raise ValueError(f"episode {e} has {length} actions, so it needs {length + 1} observations, got {len(o)}")
    if terminations is None:
        terminations = [np.zeros(length, dtype=bool) for length in lengths]
    if truncations is None:
        truncations = [np.arange(length) == length - 1 for length in lengths]
    packed = {name: np.concatenate(list(values)) for name, values in (infos or {}).items()}
    o, a, r, ends, cuts = (np.concatenate(list(v)) for v in (observations, actions, rewards, terminations, truncations))
    seen = {name: np.concatenate(v) if isinstance(v, list | tuple) else v for name, v in (images or {}).items()}
    return Episodes(o, a, r, ends, cuts, lengths, packed, dict(about or {}), seen)


def first_episodes(episodes: Episodes, count: int) -> Episodes:
    """The first `count` of them."""
    lengths = episodes.lengths[:count]
    steps, rows = int(lengths.sum()), int(lengths.sum()) + len(lengths)
    return Episodes(episodes.observations[:rows], episodes.actions[:steps], episodes.rewards[:steps],
                    episodes.terminations[:steps], episodes.truncations[:steps], lengths,
                    {name: values[:steps] for name, values in episodes.infos.items()}, episodes.about,
                    {name: images[:rows] for name, images in episodes.images.items()})


def joined_ranges(first: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """The numbers first[e]..stop[e]-1 of all e, one range after another. first, stop: [E] integers."""
    lengths = stop - first
    return np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
