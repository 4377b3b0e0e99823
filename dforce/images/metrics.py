"""What is measured on samples: are they of their class, do they differ, how far are they from the data."""

import math

import torch
from torch import Tensor

from dforce.core.frechet import frechet
from dforce.images.classifier import Classifier
from dforce.report.statistics import Interval, normal_interval

__all__ = ["accuracy", "diversity", "diversity_interval", "features", "frechet"]

CHUNK = 512  # images judged at once


@torch.no_grad()
def accuracy(classifier: Classifier, x: Tensor, labels: Tensor) -> Tensor:
    """[B] bool: does the classifier see in x [B, 1, C, H, W], clamped to [-1, 1] as files are, its class `labels`?"""
    if len(labels) != len(x):
        raise ValueError(f"{len(x)} images need as many labels, got {len(labels)}")
    return torch.cat([classifier(part).argmax(1) for part in x.clamp(-1, 1).split(CHUNK)]) == labels


def diversity(x: Tensor, labels: Tensor | None = None) -> float:
    """Mean squared distance of two different samples x [B, 1, C, H, W], summed over the pixels.

    labels [B]: the distance within classes, averaged over the classes that have two samples or more: what a model
    that collapses within its classes loses. By the variance, mean |a - b|^2 = 2 sum_d var_d, so no pair is formed.
    Raises ValueError without two samples (of one class).
    """
    return float(torch.stack([_spread(group) for group in _groups(x, labels)]).mean())


def diversity_interval(x: Tensor, labels: Tensor | None = None) -> Interval:
    """`diversity` with the 95% interval of the jackknife (a bootstrap draws samples twice, at distance 0).

    Leaving sample i out of n takes n / (n - 1) |x_i - mean|^2 from the sum of squares, so no pair is formed here.
    Two samples have no jackknife: with a group of two, low and high are nan.
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
