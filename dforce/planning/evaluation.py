"""Planners and drivers on the same starts: rows, episode lines, differences; and methods compared from such lines."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dforce.envs import Env, Maze, World
from dforce.guidance.reporting import share_of
from dforce.planning.baselines.drivers import Driver, controller_driver, random_driver, run_driver, straight_in
from dforce.planning.control import Executed, Executor, Plan, Planner, executor_in, run_episodes
from dforce.planning.cost import Meter, meter_of, plan_cost_rows
from dforce.planning.scores import METRICS, ScoreReport, blocked_mask, score_report
from dforce.planning.worlds import as_env
from dforce.report.rows import Row, difference_row, make_row
from dforce.report.statistics import interquartile_mean, probability_of_improvement, resampled
from dforce.runs.progress import Bar, no_bar

PLANNING = 0.95  # share of planning in an episode's work; the rest is driving
NAMES = {"seed", "episode", "blocked", "task", "method", *METRICS}
Key = tuple[str, str, str]  # task, method, variant as JSON


class Method(NamedTuple):
    """One of the methods that are compared."""

    name: str
    variant: dict[str, Any]  # of its rows of results
    play: Callable[..., Executed]  # (starts [N, O], goals [N, G], advance) -> its episodes; advance as in `play`
    meter: Meter | None = None  # what its plans cost


class Comparison(NamedTuple):
    """Rows and episode lines of all methods; `played`, `reports` and the names `methods` by method number."""

    rows: list[Row]
    episodes: list[dict[str, Any]]
    played: list[Executed]
    reports: list[ScoreReport]
    blocked: np.ndarray  # [N]
    methods: list[str]


def reference_methods(place: Maze | Env, *, seed: int = 0) -> list[Method]:
    """Random actions; straight driving in a world with gains; in a maze the scripted controller that knows it."""
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
    meter = planner.meter if isinstance(planner, once) else meter_of(planner)

    def play(starts: np.ndarray, goals: np.ndarray, advance: Callable[[float], object] | None = None) -> Executed:
        plans = -(-as_env(place).max_steps // (control.get("replan_every") or as_env(place).max_steps))
        meter.inner = watched(meter.inner, share_of(advance, PLANNING / plans))
        return run_episodes(place, planner if isinstance(planner, once) else meter, executor, starts, goals, seed=seed,
                            advance=share_of(advance, 1 - PLANNING), **control)

    named = {**named_variant(planner), **named_variant(executor_in(executor, place)), **(variant or {})}
    return Method(name, {**named, **{key: value for key, value in control.items() if value}}, play, meter)


def named_variant(made: Any) -> dict[str, Any]:
    """Settings that name a planner or an executor in a row of results; none where it has no `variant`."""
    return dict(getattr(made, "variant", {}))


def watched(planner: Any, advance: Callable[[float], object] | None) -> Any:
    """The planner telling the shares of a plan's work as they are done, where it is one that can."""
    return planner.with_(progress=advance) if hasattr(planner, "progress") else planner


class once:
    """A planner that answers its last question again without planning: several executors of the same plans."""

    def __init__(self, planner: Planner):
        self.meter, self.question = planner if isinstance(planner, Meter) else meter_of(planner), b""
        self.plan: Plan | None = None
        self.variant = named_variant(planner)

    def __call__(self, obs: np.ndarray, goal: np.ndarray, remaining: int, rng: np.random.Generator) -> Plan:
        question = obs.tobytes() + goal.tobytes() + f"{remaining} {rng.bit_generator.state}".encode()
        if question != self.question or self.plan is None:
            self.question, self.plan = question, self.meter(obs, goal, remaining, rng)
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
        if method.meter is not None:
            rows += plan_cost_rows(task, method.name, method.variant, [method.meter.cost], f"{len(starts)} at once")
        lines += reports[-1].episodes(task=task, method=method.name, variant=method.variant)
    return Comparison(rows, lines, played, reports, blocked, names)


def difference(task: str, name: str, a: ScoreReport, b: ScoreReport, *, metric: str = "score",
               unit: str = "D4RL-normalised x100, paired") -> list[Row]:
    """Rows of the paired difference a - b on the same starts, over all of them and over the blocked ones."""
    return [difference_row(f"{task}, paired differences", name, metric, a.values[metric][mask], b.values[metric][mask],
                           a.seed[mask], variant={"starts": starts}, unit=unit)
            for starts, mask in a.subsets()]


def pooled(lines: Iterable[Mapping[str, Any]]) -> dict[Key, ScoreReport]:
    """The episodes of each task, method and variant as one report, in the order of appearance, seeds side by side."""
    groups: dict[Key, list[Mapping[str, Any]]] = defaultdict(list)
    for line in lines:
        variant = json.dumps({key: value for key, value in line.items() if key not in NAMES})
        groups[line["task"], line["method"], variant].append(line)
    reports = {}
    for key, episodes in groups.items():
        episodes = sorted(episodes, key=lambda line: (line["seed"], line["episode"]))
        values = {m: np.array([e[m] for e in episodes], float) for m in METRICS if m in episodes[0]}
        reports[key] = ScoreReport(values, np.array([e["seed"] for e in episodes]),
                                   np.array([e["blocked"] for e in episodes], bool))
    return reports


def common(a: ScoreReport, b: ScoreReport) -> tuple[ScoreReport, ScoreReport]:
    """The episodes that both played, by seed and number within it; a method that played fewer played the first."""
    where: tuple[list[int], list[int]] = [], []
    for seed in np.intersect1d(a.seed, b.seed):
        rows = [np.flatnonzero(report.seed == seed) for report in (a, b)]
        count = min(map(len, rows))
        for chosen, row in zip(where, rows, strict=True):
            chosen.extend(row[:count])
    if not where[0]:
        raise ValueError(f"nothing to compare: seeds {np.unique(a.seed)} and {np.unique(b.seed)} have none in common")
    cut = [ScoreReport({name: values[at] for name, values in report.values.items()}, report.seed[at],
                       report.blocked[at]) for report, at in zip((a, b), where, strict=True)]
    if (cut[0].blocked != cut[1].blocked).any():
        raise ValueError("the two methods did not start from the same places: other starts are blocked")
    return cut[0], cut[1]


def paired_rows(task: str, name: str, a: ScoreReport, b: ScoreReport) -> list[Row]:
    """a - b on the same starts with its interval, over all of them and over the blocked ones; also P(a > b).

    Of the score; where a maze has no reference scores, of the return and of the success rate, which OGBench reports.
    """
    a, b = common(a, b)
    metric = headline(a)
    rows = []
    for starts, mask in a.subsets():
        seed, variant = a.seed[mask], {"starts": starts}
        for each in (metric,) if metric == "score" else (metric, "success"):
            rows.append(difference_row(f"{task}, paired differences", name, each, a.values[each][mask],
                                       b.values[each][mask], seed, variant=variant, unit=f"{METRICS[each][0]}, paired"))
        better = probability_of_improvement(a.values[metric][mask], b.values[metric][mask], seed)
        rows.append(make_row(f"{task}, paired differences", name, "probability_of_improvement", better, variant=variant,
                             seeds=len(np.unique(seed)), unit="from the same start, ties half", higher=True))
    return rows


def headline(report: ScoreReport) -> str:
    """The metric that methods are compared by: score, or return where there are no reference scores."""
    return "score" if "score" in report.values else "return"


def headline_of(rows: Iterable[Row]) -> str:
    """The same of a task's rows of results."""
    return "score" if any(row["metric"] == "score" for row in rows) else "return"


def aggregate_rows(task: str, method: str, variant: Mapping[str, Any], report: ScoreReport) -> list[Row]:
    """The mean of the middle half of the episodes' scores (Agarwal et al. 2021), of all starts and the blocked ones."""
    metric = headline(report)
    rows = []
    for starts, mask in report.subsets():
        estimate = resampled(interquartile_mean, report.values[metric][mask], report.seed[mask])
        rows.append(make_row(task, method, f"{metric}_iqm", estimate, variant={"starts": starts, **variant},
                             seeds=len(np.unique(report.seed[mask])), higher=True,
                             unit=f"{METRICS[metric][0]}, middle half of the episodes"))
    return rows
