"""The diffusion planner: a plan from where the robot is to a goal, by guided sampling."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Cond, Denoiser
from dforce.core.matrix import pyramid
from dforce.core.noise import Noise, NoiseSource, noise_of_parts, seed_of
from dforce.core.sample import generate, sample
from dforce.core.schedule import Schedule
from dforce.core.step import Step
from dforce.data.normalize import Affine
from dforce.guidance.energy import Energy, guided
from dforce.guidance.inpaint import padded
from dforce.guidance.monte_carlo import monte_carlo
from dforce.guidance.reporting import reporting, share_of
from dforce.planning.control import Plan
from dforce.planning.energy import Physical, SumOfDistances
from dforce.planning.smoothing import smoothed
from dforce.planning.worlds import checked_request
from dforce.train.checkpoint import Bundle

BUILDABLE = ("DiffusionPlanner",)  # by name, in a configuration


def noise_of(rng: np.random.Generator) -> Noise:
    """The noise of one call of a planner, for all of its episodes."""
    return Noise(seed_of(int(rng.integers(2**62)), 0))


@dataclass(frozen=True)
class DiffusionPlanner:
    """planner(obs [N, O], goal [N, G], remaining, rng) -> Plan, for `run_episodes`. See configs/planner/diffusion.yaml.

    denoiser, schedule, normalizer, layout: as a checkpoint holds them. energy: goal [N, G] -> Energy of physical plans.
    options: further ones of `monte_carlo`. horizon: environment steps of a plan; None for as many as it is asked for.
    pad_to: environment steps that a network which is not causal is shown at least, pure noise behind a shorter plan.
    smooth: tokens over which leaps between tokens are spread (`smoothed`); 0 leaves plans as the network makes them.
    episodes: bounds memory, changes no plan. bf16: autocast of the network.
    progress: told the shares of a call's work as they are done, 1 in all.
    """

    denoiser: Denoiser
    schedule: Schedule
    normalizer: Affine
    layout: dict[str, Any]
    steps: int = 20
    delay: int = 1
    order: int = 2
    eta: float = 0.0
    spacing: str = "log_snr"
    energy: Callable[[Tensor], Energy] = SumOfDistances
    scale: float = 0.3
    draws: int = 1
    lookahead: int = 2
    options: tuple[tuple[str, Any], ...] = ()
    horizon: int | None = None
    pad_to: int = 0
    smooth: float = 0.0
    episodes: int = 256
    bf16: bool = False
    progress: Callable[[float], object] | None = None

    def __post_init__(self) -> None:
        if self.horizon is not None and self.horizon < 1:
            raise ValueError(f"horizon={self.horizon}: give environment steps >= 1, or None for those asked for")
        if self.pad_to < 0:
            raise ValueError(f"pad_to={self.pad_to}: give environment steps >= 0; 0 pads nothing")
        if self.smooth < 0:
            raise ValueError(f"smooth={self.smooth}: give tokens >= 0; 0 leaves plans as the network makes them")

    def __call__(self, obs: np.ndarray, goal: np.ndarray, remaining: int, rng: np.random.Generator) -> Plan:
        obs, goal = checked_request(obs, goal, remaining, self.layout)
        parts = []
        for rows, noise in noise_of_parts(noise_of(rng), len(obs), self.episodes):
            progress = share_of(self.progress, (rows.stop - rows.start) / len(obs))
            parts.append(replace(self, progress=progress)._part(obs[rows], goal[rows], remaining, noise))
        return self._smoothed(self._plan(torch.cat(parts)), obs, goal.shape[1])

    def planned(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource) -> Plan:
        """The plans of one batch under that noise."""
        return self._smoothed(self._plan(self._part(obs, goal, remaining, noise)), obs, goal.shape[1])

    def decoded(self, x0: Tensor) -> Plan:
        """Clean tokens [N, T, stack * D], as the network has them, as a plan."""
        return self._plan(torch.as_tensor(self._physical(x0)))

    @property
    def method(self) -> str:
        """Its name in rows of results."""
        return "unguided" if not self.scale else "MCTG" if self.draws > 1 else "guided"

    @property
    def variant(self) -> dict[str, Any]:
        """Settings that name this planner in a row of results."""
        named = {"steps": self.steps, "delay": self.delay, "order": self.order, "scale": self.scale,
                 "draws": self.draws}
        named |= {"horizon": self.horizon} if self.horizon else {}
        return named | {name: getattr(self, name) for name in ("pad_to", "smooth") if getattr(self, name)}

    def tokens(self, remaining: int) -> int:
        """Number of tokens of a plan: they cover `horizon`, or `remaining` environment steps where it is None."""
        return max(1, -(-(self.horizon or remaining) // self.layout["stack"]))

    def matrix(self, tokens: int) -> Tensor:
        return pyramid(self.schedule.grid(self.steps, self.spacing), tokens, self.delay)  # type: ignore[arg-type]

    def guide(self, goal: Tensor, noise: NoiseSource, tokens: int) -> Denoiser:
        """The denoiser that makes plans of so many tokens towards `goal` [N, G]."""
        denoiser, padding = self.denoiser, -(-self.pad_to // self.layout["stack"]) - tokens
        if padding > 0 and not denoiser.causal:
            behind = torch.arange(tokens, tokens + padding, device=goal.device)
            like = torch.empty(len(goal), padding, self._width, device=goal.device)
            denoiser = padded(denoiser, self.schedule, noise(-1, behind, like))
        if not self.scale:
            return denoiser
        energy = Physical(self.energy(goal), self.normalizer, self.layout["stack"])
        if self.draws == 1:
            return guided(denoiser, self.schedule, energy, self.scale)
        return monte_carlo(denoiser, self.schedule, energy, self.draws, lookahead=self.lookahead,
                           scale=self.scale, noise=noise, **dict(self.options))

    def denoising(self, obs: np.ndarray, goal: np.ndarray, remaining: int, *, seed: int = 0,
                  ) -> Iterator[tuple[Step, np.ndarray]]:
        """Every step of one planning, with the plan it would end in now: x0_hat as physical plans [N, H, D]."""
        obs, goal = checked_request(obs, goal, remaining, self.layout)
        noise = Noise(seed)
        x, cond, goal_ = self.start(obs, goal, remaining, noise)
        with self._cast():
            for step in sample(self.guide(goal_, noise, x.shape[1]), self.schedule, self.matrix(x.shape[1]), x,
                               cond=cond, eta=self.eta, order=self.order, noise=noise):
                yield step, self._physical(step.x0)

    def start(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource,
              ) -> tuple[Tensor, Cond, Tensor]:
        """The beginning of sampling: pure noise x [N, T, D], the condition (where each starts), goals [N, G]."""
        device = self.schedule.alpha.device
        time, (c, d) = self.tokens(remaining), self.layout["observation"]
        start = self.normalizer.part(c, d).normalize(torch.tensor(obs, dtype=torch.float32, device=device))
        like = torch.empty(len(obs), time, self._width, device=device)
        x = noise(-1, torch.arange(time, device=device), like)
        return x, {"static": {"start": start}}, torch.tensor(goal, dtype=torch.float32, device=device)

    def with_(self, **changes: Any) -> Self:
        """The same planner with other settings."""
        return replace(self, **changes)

    @property
    def _width(self) -> int:
        """Numbers in a token."""
        return self.layout["stack"] * (self.layout["action"][1] + self.layout["observation"][1]
                                       - self.layout["observation"][0])

    def _cast(self) -> AbstractContextManager:
        device = self.schedule.alpha.device.type
        return torch.autocast(device, torch.bfloat16) if self.bf16 else nullcontext()

    def _part(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource) -> Tensor:
        x, cond, goal_ = self.start(obs, goal, remaining, noise)
        matrix = self.matrix(x.shape[1])
        denoiser = reporting(self.guide(goal_, noise, x.shape[1]), matrix, len(x), self.progress)
        with self._cast():
            x0 = generate(denoiser, self.schedule, matrix, x, cond=cond, eta=self.eta, order=self.order, noise=noise)
        return torch.as_tensor(self._physical(x0))

    def _smoothed(self, plan: Plan, obs: np.ndarray, width: int) -> Plan:
        """The plan with its positions, the first `width` numbers of a state, smoothed from where it starts."""
        if not self.smooth:
            return plan
        stack, path = self.layout["stack"], np.concatenate([obs[:, None], plan.states], axis=1)[..., :width]
        places = smoothed(path, stack, self.smooth * stack)[:, 1:]
        return Plan(plan.actions, np.concatenate([places, plan.states[..., width:]], axis=-1), plan.states)

    def _plan(self, plans: Tensor) -> Plan:
        numbers = plans.double().numpy()
        (a, b), (c, d) = self.layout["action"], self.layout["observation"]
        return Plan(numbers[..., a:b], numbers[..., c:d])

    def _physical(self, x0: Tensor) -> np.ndarray:
        return Physical(lambda plan: plan, self.normalizer, self.layout["stack"]).plan(x0.float()).cpu().numpy()


def planner_around(bundle: Bundle, make: Callable[..., Any] = DiffusionPlanner, **settings: Any) -> Any:
    """make(...) with those of denoiser, schedule, normalizer, layout and settings that it has arguments for; frozen."""
    if bundle.normalizer is None or "observation" not in bundle.layout:
        raise ValueError(f"a planner needs a checkpoint that was trained on trajectories, this one holds "
                         f"{sorted(bundle.layout)}; `dforce train data=dforce/maze2d-umaze-v1` makes one")
    bundle.denoiser.requires_grad_(False)
    offered = {"denoiser": bundle.denoiser, "schedule": bundle.schedule, "normalizer": bundle.normalizer,
               "layout": bundle.layout, **settings}
    taken = inspect.signature(make).parameters
    return make(**{name: value for name, value in offered.items() if name in taken})


def name_of(made: Callable[..., Any]) -> str:
    """The name of an energy in rows of results: its class, and the arguments that a configuration gave it."""
    inner, given = getattr(made, "func", made), getattr(made, "keywords", {})
    return inner.__name__ + "".join(f" {key}={value}" for key, value in given.items())
