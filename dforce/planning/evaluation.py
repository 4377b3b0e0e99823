"""Several planners and drivers on the same starts: rows, episode lines, and the played episodes for pictures."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dforce.envs import Env, Maze, World
from dforce.guidance.reporting import share_of
from dforce.planning.baselines.drivers import Driver, controller_driver, random_driver, run_driver, straight_in
from dforce.planning.control import Executed, Executor, Plan, Planner, executor_in, run_episodes
from dforce.planning.scores import ScoreReport, blocked_mask, score_report
from dforce.planning.worlds import as_env
from dforce.report.rows import Row, difference_row
from dforce.runs.progress import Bar, no_bar

PLANNING = 0.95  # share of planning in an episode's work; the rest is driving


class Method(NamedTuple):
    """One of the methods that are compared."""

    name: str
    variant: dict[str, Any]  # of its rows of results
    play: Callable[..., Executed]  # (starts [N, O], goals [N, G], advance) -> its episodes; advance as in `play`


class Comparison(NamedTuple):
    """Rows and episode lines of all methods; `played`, `reports` and the names `methods` by method number."""

    rows: list[Row]
    episodes: list[dict[str, Any]]
    played: list[Executed]
    reports: list[ScoreReport]
    blocked: np.ndarray  # [N]
    methods: list[str]


def reference_methods(place: Maze | Env, *, seed: int = 0) -> list[Method]:
    """Random actions, straight driving at the goal, and the scripted controller that knows the maze.

    The second only in a world with gains, the third only in a maze.
    """
    world = as_env(place)

    def driven(name: str, make: Callable[[], Driver]) -> Method:  # made anew for each call: a controller has a path
        return Method(name, {}, lambda starts, goals, advance=None: run_driver(world, make(), starts, goals, seed=seed,
                                                                               advance=advance))

    methods = [driven("random", lambda: partial(random_driver, width=world.action_width))]
    if world.gains is not None:
        methods.append(driven("straight", lambda: straight_in(world)))
    if isinstance(world, World):
        methods.append(driven("controller", lambda: controller_driver(world)))
    return methods


def planned(name: str, place: Maze | Env, planner: Planner, executor: Executor, *, seed: int = 0,
            variant: dict[str, Any] | None = None, **control: Any) -> Method:
    """A planner under an executor; `control` is replan_every and shrink of `run_episodes`."""
    def play(starts: np.ndarray, goals: np.ndarray, advance: Callable[[float], object] | None = None) -> Executed:
        plans = -(-as_env(place).max_steps // (control.get("replan_every") or as_env(place).max_steps))
        return run_episodes(place, watched(planner, share_of(advance, PLANNING / plans)), executor, starts, goals,
                            seed=seed, advance=share_of(advance, 1 - PLANNING), **control)

    named = {**named_variant(planner), **named_variant(executor_in(executor, place)), **(variant or {})}
    return Method(name, {**named, **{key: value for key, value in control.items() if value}}, play)


def named_variant(made: Any) -> dict[str, Any]:
    """Settings that name a planner or an executor in a row of results; none where it has no `variant`."""
    return dict(getattr(made, "variant", {}))


def watched(planner: Any, advance: Callable[[float], object] | None) -> Any:
    """The planner telling the shares of a plan's work as they are done, where it is one that can."""
    if isinstance(planner, once):
        planner.planner = watched(planner.planner, advance)
        return planner
    return planner.with_(progress=advance) if hasattr(planner, "progress") else planner


class once:
    """A planner that answers its last question again without planning: several executors of the same plans."""

    def __init__(self, planner: Planner):
        self.planner, self.question = planner, b""
        self.plan: Plan | None = None
        self.variant = named_variant(planner)

    def __call__(self, obs: np.ndarray, goal: np.ndarray, remaining: int, rng: np.random.Generator) -> Plan:
        question = obs.tobytes() + goal.tobytes() + f"{remaining} {rng.bit_generator.state}".encode()
        if question != self.question or self.plan is None:
            self.question, self.plan = question, self.planner(obs, goal, remaining, rng)
        return self.plan


def compare_methods(place: Maze | Env, methods: Iterable[Method], starts: np.ndarray, goals: np.ndarray, *,
                    task: str, bar: Bar = no_bar) -> Comparison:
    """Plays every method from the same starts [N, O] to goals [N, G] or [G]. bar: shows how far each has come."""
    goals = np.broadcast_to(goals, (len(starts), as_env(place).goal_width))
    blocked = blocked_mask(place, starts, goals)
    rows, lines, played, reports, names = [], [], [], [], []
    for method in methods:
        names.append(method.name)
        with bar(method.name) as advance:
            played.append(method.play(starts, goals, advance))
        reports.append(score_report(place, [played[-1]], [blocked]))
        rows += reports[-1].rows(task=task, method=method.name, variant=method.variant)
        lines += reports[-1].episodes(task=task, method=method.name, variant=method.variant)
    return Comparison(rows, lines, played, reports, blocked, names)


def difference(task: str, name: str, a: ScoreReport, b: ScoreReport, *, metric: str = "score",
               unit: str = "D4RL-normalised x100, paired") -> list[Row]:
    """Rows of the paired difference a - b on the same starts, over all of them and over the blocked ones."""
    return [difference_row(f"{task}, paired differences", name, metric, a.values[metric][mask], b.values[metric][mask],
                           a.seed[mask], variant={"starts": starts}, unit=unit)
            for starts, mask in (("all", np.ones_like(a.blocked)), ("blocked", a.blocked)) if mask.any()]
