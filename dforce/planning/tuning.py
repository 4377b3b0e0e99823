"""One planner tuned by one algorithm under one seed, monitored on the way."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dforce.align.algorithms.common import Algorithm, Setup
from dforce.align.loop import Epoch, tuning_epochs
from dforce.align.on_policy import Query, Sampler
from dforce.align.trace import kl
from dforce.core.denoiser import Denoiser
from dforce.core.noise import Noise, seed_of
from dforce.planning.control import Executor
from dforce.planning.planner import DiffusionPlanner, planner_around
from dforce.planning.returns import PlanQuery, PlanReturn, StartSampler
from dforce.planning.tasks import Task, task_of
from dforce.runs.progress import Ticker
from dforce.train.checkpoint import Bundle, find, keep_last, load, load_state, save, step_folder

SUITED = {"epochs": 16, "samples": 128, "group": 8, "advantage": "group", "updates": 4, "lr": 5e-5}
FORWARD = {"lr": 3e-5}  # losses on noised plans move the network further in a step
SUITED_TO: dict[str, dict[str, Any]] = {"rwr": FORWARD, "filtered": {**FORWARD, "keep": 0.25}, "nft": FORWARD,
                                  "diffusion_dpo": {"beta": 100.0, "pairs": 2}, "d3po": {"pairs": 2},
                                  "sft": {**FORWARD, "samples": 1024}}
QUERIES, MONITOR = 11, 12  # streams of starts


class PlanSampling(NamedTuple):
    """How plans are sampled in tuning, and judged: first order, eta > 0, for a policy has noise in its steps."""

    steps: int
    delay: int
    eta: float
    spacing: str


class Guided(NamedTuple):
    """The usual planner around the tuned network, and around the base, for comparison. scale 0: left out."""

    steps: int
    delay: int
    scale: float
    draws: int


class Monitoring(NamedTuple):
    """every: epochs between measurements. plans: measured each time."""

    every: int
    plans: int


@dataclass(frozen=True)
class PlannerTuning:
    """The settings of `dforce align planner`; checkpoint and pictures of the run are those of the first algorithm."""

    checkpoint: str
    raw: bool
    algorithms: dict[str, Algorithm]
    policy: PlanSampling
    starts: str
    executor: Executor
    seeds: list[int]
    episodes: int
    guided: Guided
    temperature: float
    best_of: int
    watch: Monitoring
    pictures: int
    save_every: int
    limit_seconds: float | None
    trust: str | None = None

    def __post_init__(self) -> None:
        if not self.seeds or self.starts not in ("all", "blocked"):
            raise ValueError(f"want seeds=[0,...] and starts=all or blocked, got {self.seeds}, {self.starts}")
        if min(self.episodes, *self.watch, self.save_every) < 1:
            raise ValueError("episodes, watch.every, watch.plans and save_every must be >= 1")
        if not self.policy.eta > 0:
            raise ValueError(f"policy.eta={self.policy.eta}: a policy has noise in its steps, eta > 0 (1 is DDPM)")
        if "draft" in self.algorithms:
            raise ValueError("draft goes through the reward, and what a simulator pays has no gradient")

    def load(self, checkpoint: str | None = None) -> PlanPolicy:
        """A checkpoint, that of the settings if None, as a policy; CheckpointError if it is no planner's."""
        bundle = load(self.checkpoint if checkpoint is None else checkpoint, raw=self.raw, trust=self.trust)
        task = task_of(bundle)
        planner = planner_around(bundle, DiffusionPlanner, scale=0.0, order=1, **self.policy._asdict())
        tokens = planner.tokens(task.steps)
        sampler = Sampler(bundle.denoiser, bundle.schedule, planner.matrix(tokens),
                          (tokens, *bundle.layout["event_shape"]), eta=self.policy.eta)
        return PlanPolicy(bundle, task, planner, sampler, PlanReturn(planner, task, self.executor))


class PlanPolicy(NamedTuple):
    """A network that plans without guidance, as it is tuned. sampler: with the law of every step, on record."""

    bundle: Bundle
    task: Task
    planner: DiffusionPlanner
    sampler: Sampler
    returns: PlanReturn


def suited_settings(name: str, keys: Collection[str]) -> dict[str, Any]:
    """The settings of an algorithm that suit planners, of those that it has. keys: its settings."""
    return {key: value for key, value in {**SUITED, **SUITED_TO.get(name, {})}.items() if key in keys}


def plan_queries(policy: PlanPolicy, starts: np.ndarray, goals: np.ndarray, *, name: str = "start") -> Query:
    """Plans from starts [n, O] to goals [n, G], as samplers and rewards are asked."""
    lo, hi = policy.bundle.layout["observation"]
    start = policy.planner.normalizer.part(lo, hi).normalize(torch.tensor(starts, dtype=torch.float32))
    return Query([f"{name} {i}" for i in range(len(starts))], {"static": {"start": start}},
                 [PlanQuery(obs, goal) for obs, goal in zip(starts, goals, strict=True)])


class PolicyMonitor:
    """Return, success and KL to a base of a policy, always from the same starts and goals in the same noise."""

    def __init__(self, policy: PlanPolicy, base: Denoiser, starts: np.ndarray, goals: np.ndarray, *, seed: int = 0):
        self.policy, self.base, self.query = policy, base, plan_queries(policy, starts, goals)
        self.noise = Noise(seed_of(MONITOR, seed))

    def __call__(self) -> dict[str, float]:
        return {f"watched_{name}": float(np.mean(values)) for name, values in self.values().items()}

    @torch.no_grad()
    def values(self) -> dict[str, np.ndarray]:
        """return [steps at the goal], success and kl [nats of a whole plan] of each plan, [n]."""
        sampler, query = self.policy.sampler, self.query
        trace = sampler.record(len(query.prompts), query.cond, self.noise)
        played = self.policy.returns.drive(trace.x[:, -1], query.metadata or ())
        nats = kl(trace, sampler.denoiser, self.base, sampler.schedule)
        return {"return": played.returns, "success": played.success.astype(float),
                "kl": nats.sum((1, 2)).numpy()}


def tune_policy(tuning: PlannerTuning, algorithm: str, seed: int, folder: Path, *,
                tell: Callable[[int, dict[str, float]], None]) -> PlanPolicy:
    """The policy after all epochs; goes on from folder/checkpoints. tell(queries, metrics): after each epoch."""
    policy = tuning.load()
    starts = StartSampler(policy.task, blocked=tuning.starts == "blocked")

    def ask(count: int, generator: torch.Generator) -> Query:
        number = int(torch.randint(2**31, (), generator=generator))
        return plan_queries(policy, *starts(count, seed_of(QUERIES, number)), name=f"start {number}")

    policy.bundle.denoiser.requires_grad_(True)
    # The monitor's starts are neither those of training nor those of the evaluation.
    monitor = PolicyMonitor(policy, copy.deepcopy(policy.bundle.denoiser),
                            *starts(tuning.watch.plans, seed_of(MONITOR)))
    aligning = tuning.algorithms[algorithm].prepare(Setup(policy.sampler, policy.returns, ask, seed=seed))
    checkpoints, state = folder / "checkpoints", None
    if any(checkpoints.glob("step_*")):
        where = find(folder)
        state = load_state(where)
        aligning.remember(json.loads((where / "state.json").read_text("utf-8"))["extra"]["memory"])
    else:
        tell(0, monitor())
    about = {"algorithm": algorithm, "settings": aligning.settings, "seed": seed, "base": str(tuning.checkpoint)}
    with Ticker(aligning.epochs - (state.step // aligning.per_epoch if state else 0), f"tune {algorithm}") as ticker:
        for epoch in tuning_epochs(aligning, seed=seed, resume=state, advance=ticker.part()):
            last = epoch.log.step == aligning.steps
            measured = monitor() if last or epoch.number % tuning.watch.every == 0 else {}
            tell(epoch.queries, {"epoch": epoch.number, **epoch.metrics, **measured})
            if last or epoch.number % tuning.save_every == 0:
                save_epoch(policy, epoch, checkpoints, about=about)
    policy.bundle.denoiser.requires_grad_(False).eval()
    return policy


def save_epoch(policy: PlanPolicy, epoch: Epoch, checkpoints: Path, *, about: Mapping[str, Any]) -> None:
    """Writes the checkpoint of an epoch: that of the base with new weights, and how they came about."""
    bundle = policy.bundle
    save(step_folder(checkpoints, epoch.log.step), epoch.log.training.state(), config={**bundle.config, "align": about},
         layout=bundle.layout, normalizer=bundle.normalizer,
         extra={"epoch": epoch.number, "queries": epoch.queries, "memory": epoch.memory})
    keep_last(checkpoints, 1)
