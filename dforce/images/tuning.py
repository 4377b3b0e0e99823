"""An image model tuned towards a reward: one by its name, the class, or the weighted sum of several."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dforce.align import Query, Sampler, cps, dance, flow_sde
from dforce.align.algorithms.common import Setup
from dforce.align.monitor import Measure, Monitor
from dforce.align.on_policy import Ask
from dforce.align.rewards.builtin import ClassLogProb
from dforce.align.rewards.combined import Weighted, scales_of
from dforce.align.rewards.protocol import Reward, Subject, Watched, ask_reward
from dforce.align.rewards.store import Rewards, named_reward
from dforce.align.tuning_run import PreparedTuning, TuningRun, resumed_state
from dforce.config import require_name
from dforce.data.images import load_images
from dforce.images.classifier import load_classifier, train_classifier
from dforce.images.judge import accuracy, diversity, find_judge
from dforce.images.model import ImageModel, chosen_classes, class_cond, draw, guided_by_class, load_model
from dforce.images.tuning_report import TunedModel, write_report
from dforce.runs.checkpoint_defaults import no_checkpoint
from dforce.runs.folder import RunFolder
from dforce.runs.progress import bar
from dforce.train.checkpoint import find, load, model_of
from dforce.train.precision import device_of

RULES: dict[str, Callable[..., Any]] = {"flow": flow_sde, "dance": dance, "cps": cps,
                                        "flow_published": partial(flow_sde, published=True),
                                        "dance_published": partial(dance, published=True)}
BUILDABLE = ("class_log_prob",)  # by name, in a configuration
OTHER_SEED = 7919   # of the classifier that is a reward, apart from the one that judges
FEW_STEPS = 60      # of its training, where little is to be done
SCALED_ON = 200     # images of the base that several rewards are brought to one scale on


@dataclass(frozen=True, kw_only=True)
class ImageTuning(TuningRun):
    """A run of `dforce align image`. The keys are explained in configs/verbs/align/image.yaml."""

    reward: str
    rewards: Mapping[str, float] | None
    classes: Any
    steps: int
    tune_steps: int | None
    spacing: Literal["index", "log_snr"]
    sde: str | None
    guidance: float
    classifier: Any
    best_of: int
    fast_dev_run: bool = False

    def prepare(self) -> PreparedTuning:
        """Model, reward and algorithm, or ValueError."""
        if not self.checkpoint:
            raise no_checkpoint("train image")
        device, checkpoint = device_of(self.device), self.checkpoint
        base = load_model(checkpoint, trust=self.trust)
        base.denoiser.to(device).requires_grad_(False)
        model = base._replace(denoiser=copy.deepcopy(base.denoiser).requires_grad_(True))
        self.adapted(model.denoiser)
        classes, judge = chosen_classes(self.classes, model.classes), find_judge(self.classifier, {"base": base})
        judge = judge.to(device) if judge is not None else None
        subject = Subject(base.shape, base.classes, base.data, judge, self.seed, device, self.fast_dev_run,
                          load_classifier)
        rewards = image_rewards(self.reward, self.rewards, base, subject, seed=self.eval_seed + 2, trust=self.trust)
        aligning = self.algorithm.prepare(Setup(
            self._sampler(model, self.tune_steps or self.steps), rewards.tuned, query_of(classes),
            prompts=lambda cond, count: (cond or {})["static"]["class"].tolist(), seed=self.seed, rows=self.rows))
        state, bundle = resumed_state(aligning, self.resume), load(find(checkpoint), trust=self.trust)
        tuned = TunedModel(self._sampler(model, self.steps), guided_by_class(base, self.guidance), rewards, judge, base,
                           classes)
        about = self.record(aligning, reward=rewards.name, classes=[base.classes[number] for number in classes])
        return PreparedTuning(aligning, self._monitor(tuned), bundle,
                              lambda config: {**model_of(bundle.config), **config}, about, state, tuned)

    def finish(self, prepared: PreparedTuning, folder: RunFolder) -> None:
        """Images of both models, in the same noise."""
        tuned: TunedModel = prepared.data
        with bar("judge") as advance:
            write_report(tuned, folder, algorithm=prepared.aligning.name, seed=self.eval_seed, advance=advance,
                         count=self.evaluate, best_of=self.best_of)

    def _sampler(self, model: ImageModel, steps: int) -> Sampler:
        """First order, as policy gradients want it, guidance inside."""
        if self.sde is not None:
            require_name(self.sde, RULES, "no sde")
        rule = None if self.sde is None else RULES[self.sde](model.schedule)
        matrix = model.schedule.grid(steps, self.spacing)[:, None]
        return Sampler(guided_by_class(model, self.guidance), model.schedule, matrix, (1, *model.shape),
                       eta=self.eta if rule is None else 0.0, std=rule, min_std=self.min_std, rows=self.rows)

    def _monitor(self, tuned: TunedModel) -> Monitor | None:
        """Looks at reward, held-out reward, class accuracy and diversity, of the classes that are tuned on."""
        if not self.watch:
            return None
        rewards, judge = tuned.rewards, tuned.judge

        def value_of(reward: Reward) -> Measure:
            return lambda x, query: ask_reward(reward, x, query.prompts, where="the watch")

        measures = {"reward": value_of(rewards.tuned)}
        measures |= {name: value_of(part) for name, part in rewards.parts.items()}
        if rewards.held_out is not None:
            measures["held_out"] = value_of(rewards.held_out)
        if judge is not None:
            measures["class_accuracy"] = lambda x, query: accuracy(judge, x, _labels(query).to(x.device))
        if self.watch > len(tuned.classes):
            measures["diversity"] = lambda x, query: diversity(x.clamp(-1, 1).cpu(), _labels(query))
        return Monitor(tuned.sampler, tuned.reference, query_of(tuned.classes), measures, samples=self.watch,
                       seed=self.eval_seed + 1)


def query_of(classes: list[int]) -> Ask:
    """Asks for as many images of every one of the classes as goes, in a random order."""
    def ask(count: int, generator: torch.Generator) -> Query:
        labels = torch.tensor(classes).repeat(-(-count // len(classes)))[:count]
        labels = labels[torch.randperm(count, generator=generator)]
        return Query(labels.tolist(), class_cond(labels))
    return ask


def _labels(query: Query) -> Tensor:
    return torch.tensor(list(query.prompts))


def class_log_prob(subject: Subject, *, steps: int) -> Watched:
    """log p(class) by a classifier that is trained here for so many steps, watched by the one that judges."""
    if not subject.classes:
        raise ValueError("the reward class judges images of named classes, and these have none")
    classifier = train_classifier(load_images(subject.data), seed=subject.seed + OTHER_SEED,
                                  steps=FEW_STEPS if subject.few else steps)
    if classifier.classes != subject.classes or classifier.shape != subject.shape:
        raise ValueError(f"the images of {subject.data} are no longer those that this model was trained on")
    judge = subject.judge
    return Watched(ClassLogProb(classifier.to(subject.device)), ClassLogProb(judge) if judge is not None else None)


def image_rewards(reward: str, several: Mapping[str, float] | None, model: ImageModel, subject: Subject, *, seed: int,
                  trust: Any = None) -> Rewards:
    """The reward of a name, or the weighted sum of `several` at one scale, on images drawn by `seed`."""
    if several is None:
        tuned, held_out = named_reward(reward, subject, trust=trust)
        return Rewards(reward, tuned, held_out, {})
    weights = {str(name): float(weight) for name, weight in several.items()}
    if not weights:
        raise ValueError("rewards is empty: give {jpeg: 1, class: 0.5}, or reward alone")
    parts = {name: named_reward(name, subject, trust=trust).tuned for name in weights}
    labels = torch.arange(SCALED_ON) % len(model.classes)
    x = draw(model, labels.to(subject.device), seed=seed).detach()
    total = Weighted(parts, weights, statistics=scales_of(parts, x, labels.tolist()))
    return Rewards(" + ".join(f"{weight:g} {name}" for name, weight in weights.items()), total, None, parts)
