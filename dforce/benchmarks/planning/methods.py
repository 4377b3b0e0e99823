"""From a node of a suite to played episodes: networks and data are given to whatever asks for them by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dforce.benchmarks.planning.suite import MethodNode
from dforce.config import build, resolve
from dforce.data import load_episodes
from dforce.guidance.reporting import share_of
from dforce.planning.control import Executed, play, run_episodes
from dforce.planning.cost import Cost, Meter, TokenCounter
from dforce.planning.evaluation import PLANNING, once, watched
from dforce.planning.tasks import Task
from dforce.runs.progress import Advance, no_advance
from dforce.train.checkpoint import Bundle, load
from dforce.train.precision import choose

GIVEN = ("bf16", "seed", "cache")  # given even to those that have a default of their own


class Played(NamedTuple):
    """Episodes of one method under one executor ("" for a driver), and what names it in a row."""

    executor: str
    variant: dict[str, Any]
    executed: Executed
    cost: Cost


class MethodInputs:
    """All that a method may be built from, loaded when it is asked for by the names of its arguments.

    denoiser, schedule, normalizer, layout, bf16 of the network in `model`, None for none; place (the task's world),
    maze, task, seed, data (Minari name); observations [C, S + 1, O] and actions [C, S, A], the demonstrations; horizon,
    the steps of an episode; cache, a folder for what they learn.
    """

    def __init__(self, task: Task, data: str, model: Path | None, *, seed: int = 0, device: torch.device | str = "cpu",
                 precision: str = "auto", trust: str | None = None, cache: str | None = None):
        self.task, self.data, self.model, self.seed = task, data, model, seed
        self.device, self.trust, self.counter = torch.device(device), trust, TokenCounter(None, device)
        self.offers: dict[str, Callable[[], Any]] = {  # each is made when it is asked for
            "denoiser": lambda: self.bundle.denoiser, "schedule": lambda: self.bundle.schedule,
            "normalizer": lambda: self.bundle.normalizer, "layout": lambda: self.bundle.layout,
            "bf16": lambda: choose(precision, self.device).name == "bf16",  # type: ignore[arg-type]
            "place": lambda: task.world, "maze": lambda: task.maze, "task": lambda: task, "seed": lambda: seed,
            "cache": lambda: cache, "data": lambda: data, "observations": lambda: self.chains[0],
            "actions": lambda: self.chains[1], "horizon": lambda: task.steps}

    def make(self, node: Mapping[str, Any]) -> Any:
        """Builds a node; what its target asks for, the node leaves open and this source has, is given to it."""
        parameters = inspect.signature(resolve(node["_target_"], trust=self.trust)).parameters.values()
        names = [p.name for p in parameters if p.name not in node and p.name in self.offers
                 and (p.default is p.empty or p.name in GIVEN)]
        return build(node, trust=self.trust, **{name: self.offers[name]() for name in names})

    @cached_property
    def bundle(self) -> Bundle:
        if self.model is None:
            raise ValueError("this planner needs a network: name one of the models under `model`")
        bundle = load(self.model, device=self.device, trust=self.trust)
        for parameter in bundle.denoiser.parameters():
            parameter.requires_grad_(False)  # guidance differentiates in the plan, not in the weights
        self.counter.watch(bundle.denoiser)
        return bundle

    @cached_property
    def chains(self) -> tuple[np.ndarray, np.ndarray]:
        return load_episodes(self.data).chains()


def play_method(method: MethodNode, settings: Mapping[str, Any], executors: Mapping[str, Mapping[str, Any]],
                source: MethodInputs, starts: np.ndarray, goals: np.ndarray,
                advance: Advance = no_advance) -> list[Played]:
    """The episodes of a method, its node changed by `settings`, from starts to goals under each executor.

    advance: told the shares of the work as they are done, 1 in all.
    """
    meter = Meter(source.make({**method.node, **settings}), source.counter)
    task, variant = source.task, dict(meter.variant)
    if method.drives:
        rng = np.random.default_rng(source.seed)
        executed = play(task.world, lambda t, obs, goal: meter(obs, goal, rng), starts, goals, steps=task.steps,
                        advance=advance)
        return [Played("", {**settings, **variant}, executed, meter.cost)]
    played: list[Played] = []
    planner, driving = once(meter), (1 - PLANNING) / len(method.executors)
    plans = 1 if method.replan_every is None else -(-task.steps // method.replan_every) * len(method.executors)
    meter.inner = watched(meter.inner, share_of(advance, PLANNING / plans))
    control: dict[str, Any] = {"replan_every": method.replan_every, "shrink": method.shrink}
    for name in method.executors:
        before = meter.cost
        executed = run_episodes(task.world, planner, source.make(executors[name]), starts, goals, steps=task.steps,
                                seed=source.seed, advance=share_of(advance, driving), **control)
        spent = meter.cost.since(before)
        if not spent.plans:  # it played the plans of the executor before it
            spent = played[-1].cost
        named = {**settings, **variant, **{key: value for key, value in control.items() if value}}
        played.append(Played(name, named, executed, spent))
    return played
