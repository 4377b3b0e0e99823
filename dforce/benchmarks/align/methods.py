"""What each method of `dforce benchmark align` does: a model tuned, or samples searched for, and both judged alike."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.align import Edict, Query, Sampler, add_lowrank, best_of_n, demon, doodl, kl, steer
from dforce.align.algorithms.common import Setup
from dforce.align.loop import tuning_epochs
from dforce.align.on_policy import START_SALT
from dforce.align.rewards.builtin import ClassLogProb, Jpeg
from dforce.align.rewards.protocol import Reward, ask_reward
from dforce.config import build, option
from dforce.core.denoiser import Precond
from dforce.core.noise import Noise, NoiseSource, seed_of
from dforce.core.sample import sample
from dforce.core.schedule import linear
from dforce.data.images import ImageBatches, load_images
from dforce.guidance.energy import guided
from dforce.images import ImageModel, accuracy, class_cond, load_classifier, save_classifier, train_classifier
from dforce.images.classifier import Classifier
from dforce.images.judge import diversity_interval
from dforce.images.model import layout_of, load_model
from dforce.nets.image import ImageMLP
from dforce.runs.progress import Ticker
from dforce.train.checkpoint import save
from dforce.train.fit import fit
from dforce.train.objectives import ForcingObjective

HELD_OUT = 3        # stream of the noise that methods are judged on
JUDGE_SEED = 1      # the judge is no reward: another classifier, trained from another seed
TASKS = ("jpeg", "class")
GRADIENT = ("guidance", "doodl")  # searches that want a reward with a gradient


@dataclass(frozen=True)
class Bed:
    """One task: the model before, what it is to do, and who judges. steps, spacing: of the sampler's levels."""

    task: str
    model: ImageModel
    judge: Classifier
    reward: Reward
    steps: int
    spacing: Literal["index", "log_snr"] = "index"

    @property
    def matrix(self) -> Tensor:
        """[S + 1, 1], down to level 0; the last step has no density."""
        return self.model.schedule.grid(self.steps, self.spacing)[:, None]

    def labels(self, count: int) -> Tensor:
        """[count]: all classes in turn."""
        return torch.arange(count) % len(self.model.classes)

    def sampler(self, policy: Any) -> Sampler:
        return Sampler(policy, self.model.schedule, self.matrix, (1, *self.model.shape))

    def scorer(self, labels: Tensor) -> Callable[[Tensor], Tensor]:
        """The reward of several candidates [n B, ...] for each of `labels` [B], the candidate the slow dimension."""
        return lambda x: torch.as_tensor(
            self.reward(x, labels.repeat(len(x) // len(labels)).tolist(), [None] * len(x)))


class ScoredSamples(NamedTuple):
    """B samples of a method from the noise that all methods get. kl: nats to the model before, or None."""

    x: Tensor
    label: Tensor
    reward: np.ndarray
    right: np.ndarray
    kl: np.ndarray | None

    def summary(self) -> dict[str, Any]:
        """Flat and JSON-able. diversity: squared distance within a class, with its interval, None of two a class."""
        spread = diversity_interval(self.x.clamp(-1, 1), self.label)
        low, high = (None if math.isnan(bound) else bound for bound in (spread.low, spread.high))
        return {"reward": float(self.reward.mean()), "accuracy": float(self.right.mean()),
                "kl": None if self.kl is None else float(self.kl.mean()), "diversity": spread.value,
                "diversity_low": low, "diversity_high": high, "n": len(self.reward)}

    def lines(self) -> list[dict[str, Any]]:
        """One flat object a sample."""
        return [{"sample": i, "label": int(self.label[i]), "reward": float(self.reward[i]),
                 "right": bool(self.right[i]), "kl": None if self.kl is None else float(self.kl[i])}
                for i in range(len(self.reward))]


@dataclass
class MethodResult:
    """The result of a method."""

    samples: ScoredSamples  # scored at the end
    queries: int = 0        # rewards asked for in training
    a_sample: float = 0.0   # rewards asked for to draw one sample
    seconds: float = 0.0    # of this process, without the scoring
    points: list[dict[str, Any]] = field(default_factory=list)  # summaries on the way, by rewards asked for


def scored_samples(bed: Bed, x: Tensor, label: Tensor, nats: Tensor | None = None) -> ScoredSamples:
    reward = ask_reward(bed.reward, x, label.tolist())
    return ScoredSamples(x, label, reward.numpy(), accuracy(bed.judge, x, label).numpy(),
                  None if nats is None else nats.numpy())


def policy_samples(bed: Bed, policy: Any, count: int, seed: int) -> ScoredSamples:
    """`count` samples of a policy, and the KL of each run to the model before."""
    label = bed.labels(count)
    trace = bed.sampler(policy).record(count, class_cond(label), Noise(seed_of(seed, HELD_OUT)))
    with torch.no_grad():
        nats = kl(trace, policy, bed.model.denoiser, bed.model.schedule).sum((1, 2))
    return scored_samples(bed, trace.x[:, -1], label, nats)


def run_algorithm(bed: Bed, node: Mapping[str, Any], setting: Mapping[str, Any], *, seed: int,
                  budget: Mapping[str, int], count: int, classes: Sequence[int] | None = None) -> MethodResult:
    """An algorithm run from the model before, which stays as it is.

    budget: epochs, samples (an epoch), points (how often it is judged on the way).
    count: samples that it is judged by. classes: those it is asked for; None for all.
    """
    policy = copy.deepcopy(bed.model.denoiser)
    settings = {**(node.get("settings") or {}), **setting, "epochs": budget["epochs"], "samples": budget["samples"]}
    if node.get("rank"):
        add_lowrank(policy, rank=node["rank"], generator=torch.Generator().manual_seed(seed))
    chosen = torch.tensor(list(classes) if classes is not None else range(len(bed.model.classes)))

    def ask(n: int, generator: torch.Generator) -> Query:
        number = chosen[torch.randint(0, len(chosen), (n,), generator=generator)]
        return Query(number.tolist(), class_cond(number))

    algorithm = build({**option("algorithm", node["algorithm"]), **settings})
    aligning = algorithm.prepare(Setup(bed.sampler(policy), bed.reward, ask, seed=seed))
    every, points, spent, begin = max(1, budget["epochs"] // budget["points"]), [], 0.0, time.process_time()
    queries = 0
    with Ticker(aligning.epochs, algorithm.name) as ticker:
        for epoch in tuning_epochs(aligning, seed=seed, device="cpu", advance=ticker.part()):
            queries = epoch.queries
            if epoch.number % every == 0 and epoch.number < budget["epochs"]:
                spent += time.process_time() - begin
                points.append({"queries": queries, **policy_samples(bed, policy, count // 2, seed).summary()})
                begin = time.process_time()
    spent += time.process_time() - begin
    end = policy_samples(bed, policy, count, seed)
    return MethodResult(end, queries, 0.0, spent, [*points, {"queries": queries, **end.summary()}])


def run_search(bed: Bed, node: Mapping[str, Any], setting: Mapping[str, Any], *, seed: int, count: int) -> MethodResult:
    """Samples of a search at test time, from the noise and for the classes of `policy_samples`; the model stays."""
    settings = {**(node.get("settings") or {}), **setting}
    label, noise = bed.labels(count), Noise(seed_of(seed, HELD_OUT))
    start = noise(0, torch.zeros(1, dtype=torch.long), torch.empty(count, 1, *bed.model.shape), salt=START_SALT)
    begin = time.process_time()
    x, queries, nats = SEARCHES[node["search"]](bed, start, label, noise, settings)
    return MethodResult(scored_samples(bed, x, label, nats), 0, queries, time.process_time() - begin)


SearchResult = tuple[Tensor, float, Tensor | None]  # samples, rewards asked for each, KL to the model before


def _best_of_n(bed: Bed, x: Tensor, label: Tensor, noise: NoiseSource, settings: dict[str, Any]) -> SearchResult:
    """KL: log n - (n - 1) / n, what best-of-n is bounded by (Beirami et al. 2024)."""
    n = settings["n"]
    best = best_of_n(bed.model.denoiser, bed.model.schedule, bed.matrix, x, n, bed.scorer(label),
                      cond=class_cond(label), order=1, noise=noise, rows=2048)
    return best.x, n, torch.full((len(x),), float(np.log(n) - (n - 1) / n))


def _demon(bed: Bed, x: Tensor, label: Tensor, noise: NoiseSource, settings: dict[str, Any]) -> SearchResult:
    cond = class_cond(label)
    draw = demon(bed.model.denoiser, bed.model.schedule, bed.scorer(label), cond=cond, noise=noise, **settings)
    *_, last = sample(bed.model.denoiser, bed.model.schedule, bed.matrix, x, cond=cond, eta=1.0, order=1, draw=draw,
                      noise=noise)
    return last.x.detach(), draw.queries, None


def _steering(bed: Bed, x: Tensor, label: Tensor, noise: NoiseSource, settings: dict[str, Any]) -> SearchResult:
    best = steer(bed.model.denoiser, bed.model.schedule, bed.matrix, x, settings["particles"], bed.scorer(label),
                  lam=settings["lam"], potential=settings["potential"], cond=class_cond(label), noise=noise)
    return best.best(), settings["particles"] * (bed.steps + 1), None


def _guidance(bed: Bed, x: Tensor, label: Tensor, noise: NoiseSource, settings: dict[str, Any]) -> SearchResult:
    policy = guided(bed.model.denoiser, bed.model.schedule, bed.scorer(label), settings["scale"])
    trace = bed.sampler(policy).record(len(x), class_cond(label), noise)
    with torch.no_grad():
        nats = kl(trace, policy, bed.model.denoiser, bed.model.schedule).sum((1, 2))
    return trace.x[:, -1], bed.steps, nats


def _doodl(bed: Bed, x: Tensor, label: Tensor, noise: NoiseSource, settings: dict[str, Any]) -> SearchResult:
    edict = Edict(bed.model.denoiser, bed.model.schedule, bed.matrix, cond=class_cond(label))
    best = doodl(edict, x, bed.scorer(label), **settings)
    return best.x0.detach(), settings["updates"] + 1, None


SEARCHES: dict[str, Callable[[Bed, Tensor, Tensor, Noise, dict[str, Any]], SearchResult]] = {
    "best_of_n": _best_of_n, "demon": _demon, "steering": _steering, "guidance": _guidance, "doodl": _doodl}


def make_judge(folder: Path, steps: int) -> None:
    """The classifier that judges classes, in a folder of its own."""
    images = load_images("digits")
    classifier = train_classifier(images, seed=JUDGE_SEED, steps=steps)
    held = load_images("digits", split="test")
    right = float(accuracy(classifier, held.x, held.label).float().mean())
    save_classifier(folder, classifier, about={"seed": JUDGE_SEED, "steps": steps, "test_accuracy": round(right, 4)})


def make_weak(folder: Path, steps: int) -> None:
    """A model of the digits that was trained too little, so that a reward for being of one's class has room."""
    images, schedule = load_images("digits"), linear()
    net = {"_target_": "dforce.nets.image.ImageMLP", "width": 128, "depth": 3, "hidden": 128}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ImageMLP(images.shape, static={"class": len(images.classes)}, width=128, depth=3, hidden=128)
    objective = ForcingObjective(Precond(made, schedule, "x0"), schedule)
    *_, log = fit(objective, ImageBatches(images, batch=128, seed=0, drop=0.1), lr=2e-3, steps=steps,
                  warmup=min(20, steps), ema=None, precision="fp32", seed=0, device="cpu")
    config = {"net": net, "schedule": {"_target_": "dforce.core.schedule.linear", "levels": schedule.levels},
              "predict": "x0"}
    save(folder, log.training.state(), config=config, layout=layout_of(images.shape, images.classes, "digits"))


def make_bed(task: str, *, weak: Path, judge: Path, steps: int, spacing: Any) -> Bed:
    """ValueError for an unknown task."""
    match task:
        case "jpeg":
            return Bed(task, load_model("digits"), load_classifier(judge), Jpeg(), steps, spacing)
        case "class":
            reward = ClassLogProb(load_classifier("digits"))
            return Bed(task, load_model(weak), load_classifier(judge), reward, steps, spacing)
        case _:
            raise ValueError(f"tasks are {', '.join(TASKS)}, got {task!r}")
