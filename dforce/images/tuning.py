"""An image model tuned towards a reward: one by its name, the class, or the weighted sum of several."""

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from dforce.align import Sampler
from dforce.align.algorithms.common import Setup
from dforce.align.rewards.builtin import ClassLogProb
from dforce.align.rewards.protocol import Subject, Watched
from dforce.align.tuning_run import PreparedTuning, checkpoint_store, resumed_state
from dforce.data.images import load_images
from dforce.images.classifier import load_classifier, train_classifier
from dforce.images.judge import find_judge, readings
from dforce.images.model import ImageModel, draw, guided_by_class, load_model
from dforce.images.picture_tuning import SCALED_ON, PictureTuning
from dforce.images.pictures import by_class
from dforce.images.tuning_report import TunedModel
from dforce.runs.checkpoint_defaults import no_checkpoint
from dforce.train.checkpoint import find, load, model_of
from dforce.train.precision import device_of

BUILDABLE = ("class_log_prob",)  # by name, in a configuration
OTHER_SEED = 7919   # of the classifier that is a reward, apart from the one that judges
FEW_STEPS = 60      # of its training, where little is to be done


@dataclass(frozen=True, kw_only=True)
class ImageTuning(PictureTuning):
    """A run of `dforce align image`. The keys are explained in configs/verbs/align/image.yaml."""

    checkpoint: str | None
    classes: Any
    guidance: float | None
    spacing: Literal["index", "log_snr"]
    classifier: Any

    def prepare(self) -> PreparedTuning:
        """Model, reward and algorithm, or ValueError."""
        if not self.checkpoint:
            raise no_checkpoint("train image")
        device, checkpoint = device_of(self.device), self.checkpoint
        base = load_model(checkpoint, trust=self.trust).telling(self.classes)
        base.denoiser.to(device).requires_grad_(False)
        model = base._replace(denoiser=copy.deepcopy(base.denoiser).requires_grad_(True))
        self.adapted(model.denoiser)
        classes, judge = model.choice(self.classes, "tune"), find_judge(self.classifier, {"base": base})
        judge = judge.to(device) if judge is not None else None
        subject = Subject(base.shape, base.classes, base.data, judge, self.seed, device, self.fast_dev_run,
                          load_classifier)
        rewards = self.rewards_for(subject, partial(_drawn, base, self.eval_seed + 2, device))
        tuned = TunedModel(self._sampler(model, self.steps), guided_by_class(base, self.guidance), rewards, judge,
                           base.data, "words" if base.letters else "classes", base.classes,
                           list(range(len(base.classes))), classes,
                           [number for number in base.choice(None, "report") if number not in classes], base.cond,
                           by_class, measures=partial(readings, base), search_others=base.letters > 0)
        aligning = self.algorithm.prepare(Setup(self._sampler(model, self.tune_steps or self.steps), rewards.tuned,
                                                tuned.ask(classes), seed=self.seed, rows=self.rows))
        state, bundle = resumed_state(aligning, self.resume), load(find(checkpoint), trust=self.trust)
        about = self.record(checkpoint, aligning, reward=rewards.name, classes=[base.classes[i] for i in classes])
        store = checkpoint_store(bundle, lambda config: {
            **model_of(bundle.config), "recipe": {"guidance": base.guidance}, **config})
        return PreparedTuning(aligning, self.monitor(tuned, classes, seed=self.eval_seed + 1), store, about, state,
                              tuned)

    def _sampler(self, model: ImageModel, steps: int) -> Sampler:
        """Guidance inside."""
        matrix = model.schedule.grid(steps, self.spacing)[:, None]
        return self.sampler(guided_by_class(model, self.guidance), model.schedule, matrix, model.shape)


def _drawn(model: ImageModel, seed: int, device: torch.device) -> tuple[Tensor, list[Any]]:
    """Images of all classes, and their numbers."""
    labels = torch.arange(SCALED_ON) % len(model.classes)
    return draw(model, labels.to(device), seed=seed).detach(), labels.tolist()


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
