"""Sets of images judged: measures, their rows of results.json, and lines of episodes.jsonl about single images."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.align.rewards.ocr import Tesseract
from dforce.core.frechet import frechet
from dforce.images.classifier import Classifier, load_classifier
from dforce.images.model import ImageModel
from dforce.report.rows import Row, make_row
from dforce.report.statistics import Interval, bootstrap_interval, normal_interval, wilson_interval
from dforce.train.checkpoint import CheckpointError

METRICS: dict[str, tuple[str, bool | None]] = {  # metric: (unit, higher is better)
    "class_accuracy": ("share seen as their class", True),
    "word_accuracy": ("share read rightly by Tesseract", True),
    "diversity": ("squared distance within a class", None),
    "frechet": ("distance in classifier features", False),
    "jpeg_kb": ("kB (1000 bytes) of a JPEG", None),
    "moved": ("squared distance from the first model's image from the same noise", None),
}
SHARES = ("class_accuracy", "word_accuracy")  # of images that are right
CHUNK = 512  # images judged at once


class Judged(NamedTuple):
    """Images of one method, judged. x: [N, 1, C, H, W]; label: [N]; values: metric -> [N] of single images."""

    method: str
    x: Tensor
    label: Tensor
    values: dict[str, np.ndarray]

    def rows(self, *, task: str, variant: Mapping[str, Any]) -> list[Row]:
        """One row a metric, with its 95% interval."""
        intervals = {metric: wilson_interval(int(values.sum()), len(values)) if metric in SHARES
                     else bootstrap_interval(values, rng=np.random.default_rng(0)) for metric, values in
                     self.values.items()}
        if int(self.label.bincount().max()) > 1:
            intervals["diversity"] = diversity_interval(self.x, self.label)
        return [self._row(task, variant, metric, interval) for metric, interval in intervals.items()]

    def frechet_row(self, reference: Tensor, classifier: Classifier, *, task: str, variant: Mapping[str, Any]) -> Row:
        """Their distance to `reference`, [M, 1, C, H, W]: real images, as many for all that are compared."""
        distance = frechet(features(classifier, self.x), features(classifier, reference))
        return self._row(task, variant, "frechet", Interval(distance, math.nan, math.nan, len(self.x)))

    def some(self, which: slice) -> "Judged":
        """A part of the images."""
        return Judged(self.method, self.x[which], self.label[which], {k: v[which] for k, v in self.values.items()})

    def _row(self, task: str, variant: Mapping[str, Any], metric: str, estimate: Interval) -> Row:
        unit, higher = METRICS.get(metric, ("", None))
        return make_row(task, self.method, metric, with_bounds(estimate), n=estimate.n, variant=variant, unit=unit,
                        higher=higher)

    def lines(self, *, task: str, names: Sequence[str], kind: str = "classes") -> list[dict[str, Any]]:
        """One flat object an image. names: of what is asked for; kind: classes, words or prompts."""
        key = {"classes": "class", "prompts": "prompt", "words": "word"}[kind]
        return [{"task": task, "method": self.method, "sample": i, key: names[int(label)],
                 **{metric: float(values[i]) for metric, values in self.values.items()}}
                for i, label in enumerate(self.label)]


def with_bounds(estimate: Interval) -> Interval | float:
    """The interval, or the number alone where it has no bounds (nan)."""
    return estimate.value if math.isnan(estimate.low) else estimate


def find_judge(wanted: str | bool | None, models: Mapping[str, ImageModel]) -> Classifier | None:
    """Who judges classes; None where nobody is known. ValueError for a classifier of other images.

    wanted: its folder; None or "auto" for that of a checkpoint, or of its data; False for nobody.
    """
    first = next(iter(models.values()))
    if wanted is False or first.letters:
        return None
    if wanted not in (None, "auto"):
        judge = load_classifier(str(wanted))
        if not _fits(judge, first):
            raise ValueError(f"the classifier {wanted} is for {len(judge.classes)} classes in {judge.shape}, the "
                             f"models draw {len(first.classes)} in {first.shape}")
        return judge
    places: list[str | Path] = [*(model.checkpoint for model in models.values()), first.data]
    for place in places:
        try:
            judge = load_classifier(place)
        except CheckpointError:
            continue
        if _fits(judge, first):
            return judge
    print(f"note: no classifier of {first.data} is known, so classes are not judged; classifier=FOLDER names one")
    return None


def _fits(classifier: Classifier, model: ImageModel) -> bool:
    return (classifier.shape, classifier.classes) == (model.shape, model.classes)


def judge(method: str, x: Tensor, label: Tensor, *, classifier: Classifier | None = None,
          more: Mapping[str, Tensor] | None = None) -> Judged:
    """The images with what can be said of each: class accuracy where there is a classifier, and `more`, [N] each."""
    values = {name: np.asarray(torch.as_tensor(value).double()) for name, value in (more or {}).items()}
    if classifier is not None:
        values = {"class_accuracy": accuracy(classifier, x, label).double().numpy(), **values}
    return Judged(method, x.clamp(-1, 1), label, values)


def readings(model: ImageModel, x: Tensor, label: Tensor) -> dict[str, Tensor]:
    """word_accuracy, [N] 1 where Tesseract reads the right word, of a model of words; nothing without Tesseract."""
    if not model.letters or not shutil.which("tesseract"):
        return {}
    return {"word_accuracy": Tesseract(words=model.classes, exact=True)(x, label.tolist())}


@torch.no_grad()
def accuracy(classifier: Classifier, x: Tensor, labels: Tensor) -> Tensor:
    """[B] bool: does the classifier see in x [B, 1, C, H, W], clamped to [-1, 1] as files are, its class `labels`?"""
    if len(labels) != len(x):
        raise ValueError(f"{len(x)} images need as many labels, got {len(labels)}")
    return torch.cat([classifier(part).argmax(1) for part in x.clamp(-1, 1).split(CHUNK)]) == labels


def diversity(x: Tensor, labels: Tensor | None = None) -> float:
    """Mean squared distance of two different samples x [B, 1, C, H, W], summed over the pixels.

    labels [B]: within classes, averaged over those of two samples or more. By the variance, |a - b|^2 = 2 sum_d var_d.
    """
    return float(torch.stack([_spread(group) for group in _groups(x, labels)]).mean())


def diversity_interval(x: Tensor, labels: Tensor | None = None) -> Interval:
    """`diversity` with the 95% interval of the jackknife (a bootstrap draws samples twice, at distance 0).

    Leaving sample i out of n takes n / (n - 1) |x_i - mean|^2 from the sum of squares. In a group of two it is nan.
    """
    groups = _groups(x, labels)
    variance = 0.0 if min(map(len, groups)) > 2 else math.nan
    for group in groups:
        n = len(group)
        if n < 3:
            continue
        flat = group.double().flatten(1)
        away = (flat - flat.mean(0)).square().sum(1)
        without = 2 * (away.sum() - n / (n - 1) * away) / (n - 2)
        variance += float((n - 1) / n * (without - without.mean()).square().sum()) / len(groups) ** 2
    return normal_interval(diversity(x, labels), variance**0.5, sum(map(len, groups)), least=0.0)


def _groups(x: Tensor, labels: Tensor | None) -> list[Tensor]:
    groups = [x] if labels is None else [x[labels == label] for label in labels.unique()]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        raise ValueError("diversity is a distance between samples: at least two are needed, of one class if by class")
    return groups


def _spread(group: Tensor) -> Tensor:
    """Mean squared distance of two different rows."""
    return 2 * group.double().flatten(1).var(0, correction=1).sum()


@torch.no_grad()
def features(classifier: Classifier, x: Tensor) -> Tensor:
    """[B, F] float64 of x clamped to [-1, 1]. Their `frechet` compares models of one data set, and is no FID."""
    return torch.cat([classifier.features(part) for part in x.clamp(-1, 1).split(CHUNK)]).double()
