"""A world as planning, policies and the recording of videos see it. Nothing here knows what kind of world it is.

Letters: n copies of the world, O numbers in an observation, A in an action, G in a goal; [...] are any leading axes.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np


class Copies(Protocol):
    """n episodes of one world, stepped together. Only the caller ends an episode."""

    def begin(self, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Starts n episodes from `start`, one row each, towards `goal` [n, G]; returns their observations [n, O].

        A start determines the state of the world: it is an observation, unless the world says otherwise.
        """

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves all copies under actions [n, A]; returns observations [n, O] and rewards [n] of the states reached."""


class Env(Protocol):
    """A world in which episodes are played. Goals are made of positions, a part of what is observed."""

    @property
    def name(self) -> str:
        """Name of the world, for messages and titles."""

    @property
    def observation_width(self) -> int:
        """O, numbers in an observation."""

    @property
    def action_width(self) -> int:
        """A, numbers in an action, each in [-1, 1]."""

    @property
    def goal_width(self) -> int:
        """G, numbers in a position and in a goal."""

    @property
    def max_steps(self) -> int:
        """Steps of an episode."""

    @property
    def gains(self) -> tuple[float, float] | None:
        """(gain_p, gain_d) of what steers to position p and velocity v,
        clip(gain_p (p - position) + gain_d (v - velocity), -1, 1).

        In actions a unit of length and of speed; observations are (position, velocity) or the position alone, A = G.
        None where actions do not move the position so directly.
        """

    @property
    def draw(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
        """draw(observation [O], goal [G]) -> uint8 [H, W, 3], a picture; None where the world has none."""

    def copies(self, n: int, /) -> Copies:
        """n copies of the world, to be started with `begin`."""

    def position(self, observation: np.ndarray) -> np.ndarray:
        """The position [..., G] in observations [..., O]."""

    def arrived(self, observation: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Bool [...]: observations [..., O] are at their goals [..., G]."""

    def check(self, starts: np.ndarray, goals: np.ndarray) -> None:
        """ValueError for starts [N, O] and goals [N, G] that no episode can have; it names the first of them."""
