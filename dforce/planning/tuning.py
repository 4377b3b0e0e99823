"""One planner tuned by one algorithm under one seed, watched on the way; its episodes and those of its rivals."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from dforce.align.algorithms import ALGORITHMS, build, settle
from dforce.align.loop import Epoch, tune
from dforce.align.on_policy import Query, Sampler
from dforce.align.trace import kl
from dforce.core.denoiser import Denoiser
from dforce.core.noise import Noise, seed_of
from dforce.planning.control import Executor
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.returns import Asked, PlanReturn, Starts
from dforce.planning.tasks import Task, trained_task
from dforce.train.checkpoint import Bundle, CheckpointError, find, keep_last, load, load_state, save, step_folder

SETTINGS = ("epochs", "samples", "group", "updates", "passes", "lr", "advantage", "limit", "clip_nats", "kl",
            "kl_target", "fraction", "global_std", "same_start", "beta", "keep", "pairs")
COMMON = {"epochs": 16, "samples": 128, "group": 8, "advantage": "group", "updates": 4, "lr": 5e-5}
FORWARD = {"lr": 3e-5}  # losses on noised plans move the network further in a step
OWN: dict[str, dict[str, Any]] = {"rwr": FORWARD, "filtered": {**FORWARD, "keep": 0.25}, "nft": FORWARD,
                                  "diffusion_dpo": {"beta": 100.0, "pairs": 2}, "d3po": {"pairs": 2},
                                  "sft": {**FORWARD, "samples": 1024}}
ASK, WATCH = 11, 12  # streams of starts
FEW = 6  # watched plans under fast_dev_run


class Policy(NamedTuple):
    """A network that plans without guidance, as it is tuned. sampler: with the law of every step, on record."""

    bundle: Bundle
    task: Task
    planner: DiffusionPlanner
    sampler: Sampler
    returns: PlanReturn


def policy(cfg: Any, executor: Executor) -> Policy:
    """The checkpoint of cfg as a policy; CheckpointError if it is no planner's."""
    if not cfg.policy.eta > 0:
        raise ValueError(f"policy.eta={cfg.policy.eta}: a policy has noise in its steps, eta > 0 (1 is DDPM)")
    bundle = load(cfg.checkpoint, raw=cfg.raw, trust=cfg.trust)
    try:
        task = trained_task(bundle.layout)
    except ValueError as error:
        raise CheckpointError(f"{error}; tune one that `dforce train data=dforce/maze2d-<maze>-v1` made") from error
    if bundle.normalizer is None:
        raise CheckpointError("this checkpoint has no normalizer, so its plans have no units")
    bundle.denoiser.requires_grad_(False)  # guidance differentiates in the plan, not in the weights
    planner = DiffusionPlanner(bundle.denoiser, bundle.schedule, bundle.normalizer, bundle.layout, scale=0.0, order=1,
                               **cfg.policy)
    tokens = planner.tokens(task.steps)
    sampler = Sampler(bundle.denoiser, bundle.schedule, planner.matrix(tokens),
                      (tokens, *bundle.layout["event_shape"]), eta=cfg.policy.eta)
    return Policy(bundle, task, planner, sampler, PlanReturn(planner, task, executor))


def chosen(cfg: Any, algorithm: str) -> dict[str, Any]:
    """The settings of an algorithm: those of cfg, else those that suit planners. ValueError: see `settle`.

    Algorithms that run beside that of cfg have as many epochs and samples, all else is their own.
    """
    given = {key: cfg[key] for key in SETTINGS if cfg[key] is not None}
    if algorithm != cfg.algorithm:
        given = {key: value for key, value in given.items() if key in ("epochs", "samples")}
    if algorithm in ALGORITHMS:
        uses = ALGORITHMS[algorithm].uses
        own: dict[str, Any] = {key: value for key, value in {**COMMON, **OWN.get(algorithm, {})}.items() if key in uses}
        given = {**own, **given, **({"epochs": 2, "samples": 16} if cfg.fast_dev_run else {})}
    return settle(algorithm, **given)


def query(own: Policy, starts: np.ndarray, goals: np.ndarray, *, name: str = "start") -> Query:
    """Plans from starts [n, O] to goals [n, 2], as samplers and rewards are asked."""
    lo, hi = own.bundle.layout["observation"]
    start = own.planner.normalizer.part(lo, hi).normalize(torch.tensor(starts, dtype=torch.float32))
    return Query([f"{name} {i}" for i in range(len(starts))], {"static": {"start": start}},
                 [Asked(obs, goal) for obs, goal in zip(starts, goals, strict=True)])


class Watch:
    """What is seen of a policy besides its training: return, success and KL to a base, always of the same starts [n, O]
    with goals [n, 2] and in the same noise."""

    def __init__(self, own: Policy, base: Denoiser, starts: np.ndarray, goals: np.ndarray, *, seed: int = 0):
        self.own, self.base, self.query, self.noise = own, base, query(own, starts, goals), Noise(seed_of(WATCH, seed))

    def __call__(self) -> dict[str, float]:
        return {f"watched_{name}": float(np.mean(values)) for name, values in self.values().items()}

    @torch.no_grad()
    def values(self) -> dict[str, np.ndarray]:
        """return [steps at the goal], success and kl [nats of a whole plan] of each plan, [n]."""
        sampler, asked = self.own.sampler, self.query
        trace = sampler.record(len(asked.prompts), asked.cond, self.noise)
        played = self.own.returns.drive(trace.x[:, -1], asked.metadata or ())
        nats = kl(trace, sampler.denoiser, self.base, sampler.schedule)
        return {"return": played.returns, "success": played.success.astype(float),
                "kl": nats.sum((1, 2)).numpy()}


def tuned(cfg: Any, algorithm: str, seed: int, executor: Executor, folder: Path, *,
          tell: Callable[[int, dict[str, float]], None]) -> Policy:
    """The policy after all epochs; checkpoints go to folder/checkpoints, and a run that was stopped goes on there.

    tell(queries, metrics) after every epoch, and before the first. What a reward refuses is raised as it is; the last
    checkpoint is then whole, and has the weights before it.
    """
    own, settings = policy(cfg, executor), chosen(cfg, algorithm)
    starts = Starts(own.task, blocked=cfg.starts == "blocked")

    def ask(count: int, generator: torch.Generator) -> Query:
        number = int(torch.randint(2**31, (), generator=generator))
        return query(own, *starts(count, seed_of(ASK, number)), name=f"start {number}")

    own.bundle.denoiser.requires_grad_(True)
    # Starts that neither training nor evaluation has.
    watch = Watch(own, copy.deepcopy(own.bundle.denoiser), *starts(FEW if cfg.fast_dev_run else cfg.watch.plans,
                                                                   seed_of(WATCH)))
    aligning = build(algorithm, own.sampler, own.returns, ask, settings=settings, seed=seed)
    checkpoints, state = folder / "checkpoints", None
    if any(checkpoints.glob("step_*")):
        where = find(folder)
        state = load_state(where)
        aligning.remember(json.loads((where / "state.json").read_text("utf-8"))["extra"]["memory"])
    else:
        tell(0, watch())
    for epoch in tune(aligning, seed=seed, resume=state):
        last = epoch.log.step == aligning.steps
        seen = watch() if last or epoch.number % cfg.watch.every == 0 else {}
        tell(epoch.queries, {"epoch": epoch.number, **epoch.metrics, **seen})
        if last or epoch.number % cfg.save_every == 0:
            keep(own, epoch, checkpoints, about={"algorithm": algorithm, "settings": settings, "seed": seed,
                                                 "base": str(cfg.checkpoint)})
    own.bundle.denoiser.requires_grad_(False).eval()
    return own


def keep(own: Policy, epoch: Epoch, checkpoints: Path, *, about: Mapping[str, Any]) -> None:
    """Writes the checkpoint of an epoch: what the base's was, with new weights, and how they came about."""
    bundle = own.bundle
    save(step_folder(checkpoints, epoch.log.step), epoch.log.training.state(), config={**bundle.config, "align": about},
         layout=bundle.layout, normalizer=bundle.normalizer,
         extra={"epoch": epoch.number, "queries": epoch.queries, "memory": epoch.memory})
    keep_last(checkpoints, 1)

