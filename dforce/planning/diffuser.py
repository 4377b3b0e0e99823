"""Diffuser (Janner et al. 2022) as a composition: full-sequence diffusion of windows that end at the goal.

Its network (`nets.temporal`) is trained by `InpaintingObjective`, the state that a window ends in shown clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Denoiser
from dforce.core.noise import NoiseSource, noise_of_parts
from dforce.core.schedule import Schedule
from dforce.core.step import Step
from dforce.data.normalize import Affine
from dforce.guidance.energy import Energy
from dforce.guidance.inpaint import inpaint
from dforce.guidance.reporting import share_of
from dforce.planning.control import Plan
from dforce.planning.energy import SumOfDistances
from dforce.planning.planner import DiffusionPlanner, noise_of
from dforce.planning.worlds import checked_request

BUILDABLE = ("DiffuserPlanner",)  # by name, in a configuration


@dataclass(frozen=True)
class DiffuserPlanner:
    """planner(obs [N, O], goal [N, G], remaining, rng) -> Plan of at least `remaining` steps, for `run_episodes`.

    horizon: environment steps from the start to the goal; None for those of training. Behind them the plan rests.
    rest: the plan ends at the goal at rest, as Diffuser's do; else only the position is known, for a network that was
    trained so (`final` with end=-2). episode: None plans `horizon` steps every time; the steps of an episode, with
    `shrink` of `run_episodes`: a plan made at step t ends where the first one would, or after `least` steps.
    energy, scale: guidance beside the goal. All others as in `DiffusionPlanner`; Diffuser's own are order 1, eta 1 and
    index spacing.
    """

    denoiser: Denoiser
    schedule: Schedule
    normalizer: Affine
    layout: dict[str, Any]
    horizon: int | None = None
    steps: int = 20
    order: int = 2
    eta: float = 0.0
    spacing: str = "log_snr"
    rest: bool = True
    episode: int | None = None
    least: int = 32
    energy: Callable[[Tensor], Energy] = SumOfDistances
    scale: float = 0.0
    episodes: int = 256
    bf16: bool = False
    progress: Callable[[float], object] | None = None

    def __post_init__(self) -> None:
        if (self.horizon is not None and self.horizon < 1) or self.least < 1:
            raise ValueError(f"horizon={self.horizon}, least={self.least}: both are environment steps >= 1 (or None)")
        if self.denoiser.causal:
            raise ValueError("this network is causal, so what it plans first knows nothing of a goal at the end: plan "
                             "with DiffusionPlanner, or train with net=temporal")

    def __call__(self, obs: np.ndarray, goal: np.ndarray, remaining: int, rng: np.random.Generator) -> Plan:
        obs, goal = checked_request(obs, goal, remaining, self.layout)
        parts = []
        for rows, noise in noise_of_parts(noise_of(rng), len(obs), self.episodes):
            progress = share_of(self.progress, (rows.stop - rows.start) / len(obs))
            parts.append(self.with_(progress=progress)._part(obs[rows], goal[rows], remaining, noise))
        return Plan(*map(np.concatenate, zip(*(part[:2] for part in parts), strict=True)))

    @property
    def method(self) -> str:
        """Its name in rows of results."""
        return "Diffuser"

    @property
    def variant(self) -> dict[str, Any]:
        named = {"horizon": self.horizon or self.layout["horizon"], "steps": self.steps, "order": self.order,
                 "eta": self.eta}
        named |= {} if self.rest else {"rest": False}
        return named | ({"scale": self.scale} if self.scale else {})

    def with_(self, **changes: Any) -> DiffuserPlanner:
        """The same planner with other settings."""
        return replace(self, **changes)

    def length(self, remaining: int) -> int:
        """Environment steps of a plan that is made when so many are left of an episode."""
        length = self.horizon or self.layout["horizon"]
        return length if self.episode is None else max(length - (self.episode - remaining), min(self.least, length))

    def known(self, goal: np.ndarray, tokens: int) -> tuple[Tensor, Tensor]:
        """The known entries of a plan, normalised, and their mask: [N, tokens, stack * D] and bool of that shape."""
        c, d = self.layout["observation"]
        place = np.zeros((len(goal), d - c))
        place[:, :goal.shape[1]] = goal
        state = self.normalizer.part(c, d).normalize(torch.tensor(place, dtype=torch.float32,
                                                                  device=self.schedule.alpha.device))
        known = state.new_zeros(len(goal), tokens, self.layout["stack"] * self.normalizer.width)
        first, count = known.shape[-1] - (d - c), d - c if self.rest else goal.shape[1]
        mask = torch.zeros_like(known, dtype=torch.bool)
        known[:, -1, first:first + count], mask[:, -1, first:first + count] = state[:, :count], True
        return known, mask

    def planner(self, goal: np.ndarray, length: int) -> DiffusionPlanner:
        """The full-sequence planner of so many steps that ends at `goal` [N, G], for these N."""
        tokens = -(-length // self.layout["stack"])
        denoiser = inpaint(self.denoiser, *self.known(goal, tokens), show="clean")
        return DiffusionPlanner(denoiser, self.schedule, self.normalizer, self.layout, steps=self.steps, delay=0,
                                order=self.order, eta=self.eta, spacing=self.spacing, energy=self.energy,
                                scale=self.scale, horizon=length, episodes=len(goal), bf16=self.bf16,
                                progress=self.progress)

    def denoising(self, obs: np.ndarray, goal: np.ndarray, remaining: int, *, seed: int = 0,
                  ) -> Iterator[tuple[Step, np.ndarray]]:
        """Every step of one planning, as in `DiffusionPlanner`: the plan up to the goal, physical [N, H, D]."""
        obs, goal = checked_request(obs, goal, remaining, self.layout)
        return self.planner(goal, self.length(remaining)).denoising(obs, goal, remaining, seed=seed)

    def _part(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource) -> Plan:
        plan = self.planner(goal, self.length(remaining)).planned(obs, goal, remaining, noise)
        return held(plan, remaining, goal.shape[1])


def held(plan: Plan, steps: int, width: int) -> Plan:
    """The plan, its last position (`width` numbers) kept at rest until it has so many steps; no action there."""
    missing = max(steps - plan.states.shape[1], 0)
    rest = np.zeros_like(plan.states[:, -1:])
    rest[..., :width] = plan.states[:, -1:, :width]
    states = np.concatenate([plan.states, np.repeat(rest, missing, 1)], 1)
    return Plan(np.concatenate([plan.actions, np.zeros((len(states), missing, plan.actions.shape[2]))], 1), states)
