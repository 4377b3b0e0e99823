"""The return of plans that are driven: the reward that a planner is tuned on, and the starts that it plans from.

A reward is (plans [B, T, stack * D] as the network has them, prompts, metadata: `PlanQuery` of each) -> [B].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.core.noise import NoiseSource
from dforce.guidance.reporting import share_of
from dforce.planning.control import Executed, Executor, Plan, executor_in, play
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.scores import blocked_mask
from dforce.planning.tasks import Task

MOST_DRAWS = 16  # times that starts are drawn for one answer before the task is found to have no blocked ones


class PlanQuery(NamedTuple):
    """Start and goal of one plan. obs: [O], in the units of the world; goal: [G]."""

    obs: np.ndarray
    goal: np.ndarray


class PlanReturn:
    """reward(plans, prompts, metadata) -> [B] float64: steps spent at the goal when each plan is driven, 0..`steps`.

    planner: whose layout and normaliser the plans have; executor: drives them in the task's world, all side by side.
    """

    def __init__(self, planner: DiffusionPlanner, task: Task, executor: Executor):
        self.planner, self.task, self.executor = planner, task, executor_in(executor, task.world)
        self.__qualname__ = f"PlanReturn in {task.name}"  # what errors call it

    def __call__(self, plans: Tensor, prompts: Sequence[Any], metadata: Sequence[PlanQuery | None]) -> Tensor:
        return torch.as_tensor(self.drive(plans, metadata).returns)

    def drive(self, plans: Tensor, metadata: Sequence[PlanQuery | None]) -> Executed:
        """The episodes of the plans [B, T, stack * D], each from its own start."""
        queries = [each for each in metadata if each is not None]
        if len(queries) != len(plans):
            raise ValueError(f"{len(plans)} plans are driven from as many starts, metadata gives {len(queries)}")
        if not bool(plans.isfinite().all()):
            raise ValueError("a plan is not finite: the policy has diverged; lower lr, or add a KL")
        states = self.planner.decoded(plans)

        def act(t: int, obs: np.ndarray, goal: np.ndarray) -> np.ndarray:
            return self.executor(states, t, obs, goal)

        starts, goals = np.stack([each.obs for each in queries]), np.stack([each.goal for each in queries])
        return play(self.task.world, act, starts, goals, steps=self.task.steps)._replace(plan=states)


class StartSampler:
    """starts(n, seed) -> observations [n, O] and goals [n, G] of a task; blocked: that straight driving fails from."""

    def __init__(self, task: Task, *, blocked: bool = False):
        self.task, self.blocked = task, blocked

    def __call__(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        if not self.blocked:
            return self.task.starts(n, seed)
        drawn: list[tuple[np.ndarray, np.ndarray]] = []
        for draw in range(MOST_DRAWS):
            starts, goals = self.task.starts(4 * n, seed + draw * 2**32)  # seeds that nothing else counts through
            mask = blocked_mask(self.task.world, starts, goals)
            drawn.append((starts[mask], goals[mask]))
            if sum(len(part) for part, _ in drawn) >= n:
                return tuple(np.concatenate(parts)[:n] for parts in zip(*drawn, strict=True))  # type: ignore[return-value]
        raise ValueError(f"{4 * n * MOST_DRAWS} starts of {self.task.name} gave "
                         f"{sum(len(part) for part, _ in drawn)} that straight driving does not solve, {n} are wanted: "
                         "tune on all starts")


def tempered(noise: NoiseSource, temperature: float) -> NoiseSource:
    """Noise of `temperature` >= 0 times the usual standard deviation: 0 is the most likely path, 1 the usual law."""
    if temperature < 0:
        raise ValueError(f"the temperature must be >= 0, got {temperature}")

    def scaled(row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
               sample: Tensor | None = None) -> Tensor:
        return temperature * noise(row, token, like, salt=salt, sample=sample)
    return scaled


@dataclass(frozen=True)
class LowTemperature(DiffusionPlanner):
    """`DiffusionPlanner` with all its noise, that it begins in and that of its steps, times `temperature`."""

    method = "low temperature"
    temperature: float = 0.5

    @property
    def variant(self) -> dict[str, Any]:
        return {**super().variant, "temperature": self.temperature}

    def _part(self, obs: np.ndarray, goal: np.ndarray, remaining: int, noise: NoiseSource) -> Tensor:
        return super()._part(obs, goal, remaining, tempered(noise, self.temperature))


def best_driven(planner: DiffusionPlanner, returns: PlanReturn, n: int) -> Callable[..., Executed]:
    """play(starts, goals, seed, advance) -> the best of n episodes from every start: the simulator is asked n times."""
    if n < 1:
        raise ValueError(f"n={n}: give the number of plans to drive, >= 1")

    def best(starts: np.ndarray, goals: np.ndarray, seed: int,
             advance: Callable[[float], object] | None = None) -> Executed:
        many, to = np.tile(starts, (n, 1)), np.tile(goals, (n, 1))  # the plan is the slow dimension
        telling = planner.with_(progress=share_of(advance, 0.5))
        plan = telling(many, to, returns.task.steps, np.random.default_rng(seed))
        played = play(returns.task.world, lambda t, obs, goal: returns.executor(plan, t, obs, goal), many, to,
                      steps=returns.task.steps, advance=share_of(advance, 0.5))
        chosen = played.returns.reshape(n, -1).argmax(0) * len(starts) + np.arange(len(starts))
        return Executed(played.rewards[chosen], played.trajectory[chosen], played.actions[chosen], goals,
                        Plan(plan.actions[chosen], plan.states[chosen]))
    return best

