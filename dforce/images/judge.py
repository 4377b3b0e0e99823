"""Rows of results.json about sets of images, and lines of episodes.jsonl about single ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.images.classifier import Classifier
from dforce.images.metrics import accuracy, diversity_interval, features, frechet
from dforce.report.statistics import Interval, bootstrap_interval, wilson_interval

Row = dict[str, Any]

METRICS: dict[str, tuple[str, bool | None]] = {  # metric: (unit, higher is better)
    "class_accuracy": ("share seen as their class", True),
    "diversity": ("squared distance within a class", None),
    "frechet": ("distance in classifier features", False),
    "jpeg_kb": ("kB (1000 bytes) of a JPEG", None),
    "moved": ("squared distance from the first model's image from the same noise", None),
}


class Judged(NamedTuple):
    """Images of one method, judged. x: [N, 1, C, H, W]; label: [N]; values: metric -> [N] of single images."""

    method: str
    x: Tensor
    label: Tensor
    values: dict[str, np.ndarray]

    def rows(self, *, task: str, variant: Mapping[str, Any]) -> list[Row]:
        """One row a metric, with its 95% interval."""
        found: dict[str, Interval] = {}
        if int(self.label.bincount().max()) > 1:
            found["diversity"] = diversity_interval(self.x, self.label)
        for metric, values in self.values.items():
            found[metric] = (wilson_interval(int(values.sum()), len(values)) if metric == "class_accuracy"
                             else bootstrap_interval(values, rng=np.random.default_rng(0)))
        names = [*self.values, "diversity"]
        return [self._row(task, variant, metric, found[metric]._asdict()) for metric in names if metric in found]

    def frechet_row(self, reference: Tensor, classifier: Classifier, *, task: str, variant: Mapping[str, Any]) -> Row:
        """Their distance to `reference`, [M, 1, C, H, W]: real images, as many for all that are compared."""
        distance = frechet(features(classifier, self.x), features(classifier, reference))
        return self._row(task, variant, "frechet", {"value": distance, "low": None, "high": None, "n": len(self.x)})

    def some(self, which: slice) -> Judged:
        """A part of the images."""
        return Judged(self.method, self.x[which], self.label[which], {k: v[which] for k, v in self.values.items()})

    def _row(self, task: str, variant: Mapping[str, Any], metric: str, estimate: Mapping[str, Any]) -> Row:
        unit, higher = METRICS.get(metric, ("", None))
        known = {key: None if isinstance(value, float) and math.isnan(value) else value
                 for key, value in estimate.items()}  # no interval
        return {"task": task, "method": self.method, "variant": dict(variant), "metric": metric, **known, "seeds": 1,
                "unit": unit, "higher_is_better": higher}

    def lines(self, *, task: str, classes: tuple[str, ...]) -> list[Row]:
        """One flat object an image."""
        return [{"task": task, "method": self.method, "sample": i, "class": classes[int(label)],
                 **{metric: float(values[i]) for metric, values in self.values.items()}}
                for i, label in enumerate(self.label)]


def judge(method: str, x: Tensor, label: Tensor, *, classifier: Classifier | None = None,
          more: Mapping[str, Tensor] | None = None) -> Judged:
    """The images with what can be said of each: class accuracy where there is a classifier, and `more`, [N] each."""
    values = {name: np.asarray(torch.as_tensor(value).double()) for name, value in (more or {}).items()}
    if classifier is not None:
        values = {"class_accuracy": accuracy(classifier, x, label).double().numpy(), **values}
    return Judged(method, x.clamp(-1, 1), label, values)
