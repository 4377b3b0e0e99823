"""Executing plans: from a plan and an observation to an action, and from many plans to played episodes.

An executor decides a score as much as a plan does, so it is an argument, and its `variant` goes into every row.
Everything is batched over N episodes, in the units of the world. An observation [O] is (position, velocity), or the
position alone; a goal [G] is a position, and an action [A] lies in [-1, 1]. In maze2d a length is one cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dforce.envs import Env, Maze
from dforce.envs.maze.controller import D_GAIN, P_GAIN, steer
from dforce.envs.maze.grid import GOAL_RADIUS
from dforce.planning.worlds import as_env, episode_arrays

BUILDABLE = ("tracking", "diffused_action")  # by name, in a configuration


class Plan(NamedTuple):
    """N plans of H steps. actions: [N, H, A]; states: [N, H, O], state h is where the plan is AFTER step h."""

    actions: np.ndarray
    states: np.ndarray
    raw: np.ndarray | None = None  # the states before they were smoothed; None where they were not


Planner = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], Plan]
"""planner(obs [N, O], goal [N, G], remaining steps, rng) -> Plan. A plan may be longer or shorter than `remaining`."""

Executor = Callable[[Plan, int, np.ndarray, np.ndarray], np.ndarray]
"""executor(plan, t, obs [N, O], goal [N, G]) -> action [N, A]; t counts the steps since the plan was made, from 0."""

Act = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""act(t, obs [N, O], goal [N, G]) -> action [N, A]; t counts the steps since the episode began, from 0."""


class Executed(NamedTuple):
    """N episodes of H steps as they went."""

    rewards: np.ndarray       # [N, H], of the state stepped into: 1 near the goal, half a cell in maze2d
    trajectory: np.ndarray    # [N, H + 1, O], observations from the start on
    actions: np.ndarray       # [N, H, A] as sent
    goals: np.ndarray         # [N, G]
    plan: Plan | None = None  # the first plan, for pictures; None where nothing was planned (the baselines)

    @property
    def returns(self) -> np.ndarray:
        """Sum of rewards, which is the number of steps spent at the goal. [N]"""
        return self.rewards.sum(axis=1)

    @property
    def success(self) -> np.ndarray:
        """Whether the goal was ever reached. [N] bool"""
        return np.asarray((self.rewards > 0).any(axis=1))

    @property
    def first_reach(self) -> np.ndarray:
        """Steps taken until the first reward, 1..H, or -1 where it never came. [N] int"""
        return np.where(self.success, (self.rewards > 0).argmax(axis=1) + 1, -1)

    @property
    def latched(self) -> np.ndarray:
        """Return with reward 1 on every step from the first success on (Diffusion Veteran's), not comparable. [N]"""
        horizon = self.rewards.shape[1]
        return np.where(self.success, horizon + 1.0 - self.first_reach, 0.0)


@dataclass(frozen=True)
class tracking:  # lower case, for it is used as the function that it is: tracking(hold=False)
    """PD tracking of the planned states: clip(gain_p (p' - x) + gain_d (v' - v)), (p', v') the plan's next state.

    The gains are D4RL's controller's, 10 and 1, for the ball of maze2d and PointMaze. In OGBench an action is a
    displacement of .2 m: 5 and 0. Where the plan ends, its last state stays the target.
    """

    gain_p: float | None = None  # actions a cell of position error; None: the world's own (`Env.gains`)
    gain_d: float | None = None  # actions a cell/s of velocity error
    hold: bool = True            # rest at the goal once the plan arrives, for demonstrations never stay at a goal
    arrive: float = 0.4          # distance in cells that counts as arriving
    pace: float = 1.0            # the plan is run through so many times as fast; demonstrators are slow

    def __post_init__(self) -> None:
        if (self.gain_p is not None and self.gain_p <= 0) or (self.gain_d is not None and self.gain_d < 0):
            raise ValueError(f"want gain_p > 0 and gain_d >= 0, got gain_p={self.gain_p}, gain_d={self.gain_d}")
        if self.pace <= 0:
            raise ValueError(f"pace={self.pace} must be positive; 1 follows the plan as it was made")
        if not 0 < self.arrive <= GOAL_RADIUS:
            raise ValueError(f"arrive={self.arrive} is not in (0, {GOAL_RADIUS}], where reward is paid")

    @property
    def variant(self) -> dict[str, object]:
        """Settings that name this executor in a row of results."""
        return {"executor": "tracking", **asdict(self), **dict(zip(("gain_p", "gain_d"), self.gains(), strict=True))}

    def gains(self, usual: tuple[float, float] = (P_GAIN, -D_GAIN)) -> tuple[float, float]:
        """(gain_p, gain_d), with the `usual` ones for those that were not given."""
        return (usual[0] if self.gain_p is None else self.gain_p, usual[1] if self.gain_d is None else self.gain_d)

    def in_world(self, world: Env) -> tracking:
        """The same executor with the world's gains where none were given."""
        gain_p, gain_d = self.gains(*[world.gains] if world.gains is not None else ())
        return replace(self, gain_p=gain_p, gain_d=gain_d)

    def __call__(self, plan: Plan, t: int, obs: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """plan of N, step t >= 0 of it, obs: [N, O], goal: [N, G] -> action [N, G] in [-1, 1]."""
        error, width = self.target(plan, t, goal) - obs, goal.shape[1]
        return steer(self.gains(), error[:, :width], error[:, width:])

    def target(self, plan: Plan, t: int, goal: np.ndarray) -> np.ndarray:
        """The state that is steered for at step t >= 0 of the plan: its state after that step, or the hold. [N, O]"""
        last, width = plan.states.shape[1] - 1, goal.shape[1]
        place = min(self.pace * (t + 1) - 1, last)  # in the plan; between two of its states unless pace is whole
        before = max(math.floor(place), 0)
        target = plan.states[:, before]
        if place > before:
            target = target + (place - before) * (plan.states[:, before + 1] - target)
        target = np.concatenate([target[:, :width], self.pace * target[:, width:]], axis=1)
        if self.hold:
            gap = plan.states[:, : before + 1, :width] - goal[:, None]
            arrived = ((gap**2).sum(axis=-1) <= self.arrive**2).any(axis=1)
            rest = np.concatenate([goal, np.zeros_like(target[:, width:])], axis=1)
            target = np.where(arrived[:, None], rest, target)
        return target


@dataclass(frozen=True)
class diffused_action:
    """The plan's own actions, open loop, clipped to [-1, 1]. Past the plan's end: no force, the ball coasts."""

    @property
    def variant(self) -> dict[str, object]:
        return {"executor": "diffused_action"}

    def __call__(self, plan: Plan, t: int, obs: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """plan of N, step t >= 0 of it; obs and goal are not used -> action [N, A] in [-1, 1]."""
        if t >= plan.actions.shape[1]:
            return np.zeros_like(plan.actions[:, 0])  # repeating the last force would drive on for ever
        return np.clip(plan.actions[:, t], -1.0, 1.0)


def executor_in(executor: Any, place: Maze | Env) -> Any:
    """The executor as `run_episodes` uses it: with the world's own gains, where it has gains and was given none."""
    return executor.in_world(as_env(place)) if hasattr(executor, "in_world") else executor


def play(place: Maze | Env, act: Act, starts: np.ndarray, goals: np.ndarray, *, steps: int | None = None,
         advance: Callable[[float], object] | None = None) -> Executed:
    """Lets `act` drive N episodes at once, each to the end. place: a world, or a maze for D4RL's ball in it.

    starts: [N, O]; goals: [N, G] or one goal [G] for all; steps: the world's max_steps unless given. advance: told the
    share of each step, 1 in all.
    """
    world = as_env(place)
    starts, goals = episode_arrays(world, starts, goals)
    steps = world.max_steps if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    count = len(starts)
    env = world.copies(count)
    trajectory = np.empty((count, steps + 1, world.observation_width))
    actions = np.empty((count, steps, world.action_width))
    rewards = np.empty((count, steps))
    trajectory[:, 0] = env.begin(starts.copy(), goals.copy())
    for t in range(steps):
        actions[:, t] = act(t, trajectory[:, t].copy(), goals.copy())
        trajectory[:, t + 1], rewards[:, t] = env.step(actions[:, t].copy())
        if advance is not None:
            advance(1 / steps)
    return Executed(rewards, trajectory, actions, goals)


def run_episodes(place: Maze | Env, planner: Planner, executor: Executor, starts: np.ndarray, goals: np.ndarray, *,
                 steps: int | None = None, replan_every: int | None = None, shrink: bool = False,
                 seed: int = 0, advance: Callable[[float], object] | None = None) -> Executed:
    """Receding-horizon control: plans, executes `replan_every` steps of it, plans again from where the body is.

    place, starts, goals, steps: as in `play`. replan_every=None plans once. The planner is asked for `steps` steps each
    time, or for those that are left (`shrink`); its generator is a function of (seed, step of the episode) alone.
    advance: told the share of each step, 1 in all.
    """
    if replan_every is not None and replan_every < 1:
        raise ValueError(f"replan_every={replan_every}: give a number of steps >= 1, or None to plan once")
    world, executor = as_env(place), executor_in(executor, place)
    steps = world.max_steps if steps is None else steps
    every = steps if replan_every is None else replan_every
    plans: dict[str, Plan] = {}

    def act(t: int, obs: np.ndarray, goal: np.ndarray) -> np.ndarray:
        age = t % every
        if age == 0:
            horizon = steps - t if shrink else steps
            made = planner(obs.copy(), goal.copy(), horizon, np.random.default_rng([seed, t]))
            plans["now"] = checked_plan(made, len(obs), world)
            plans.setdefault("first", plans["now"])
        return executor(plans["now"], age, obs, goal)

    played = play(world, act, starts, goals, steps=steps, advance=advance)
    return played._replace(plan=plans["first"])


def checked_plan(plan: Plan, count: int, world: Env) -> Plan:
    """The plan, read-only, if it is finite, at least one step long and made for `count` episodes; else ValueError."""
    actions, states, _ = plan
    horizon = states.shape[1] if states.ndim == 3 else 0
    seen, acted = world.observation_width, world.action_width
    if horizon < 1 or states.shape != (count, horizon, seen) or actions.shape != (count, horizon, acted):
        raise ValueError(f"a plan for {count} episodes holds actions [{count}, H, {acted}] and states [{count}, H, "
                         f"{seen}] with H >= 1, got {actions.shape} and {states.shape}; stacked tokens have to be "
                         "unstacked first")
    for name, array in (("actions", actions), ("states", states)):
        if not np.isfinite(array).all():
            episode, step, column = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(f"planned {name} are not finite, first at episode {episode}, step {step}, column "
                             f"{column}; a smaller guidance scale usually cures it")
    checked = Plan(actions.view(), states.view(), plan.raw)
    checked.actions.flags.writeable = checked.states.flags.writeable = False
    return checked
