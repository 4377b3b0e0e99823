"""The rewards of image models: one by name, or several at once; and the one that looks at classes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dforce.align.rewards.builtin import ClassLogProb
from dforce.align.rewards.combined import Weighted, scales_of
from dforce.align.rewards.named import Rewards, named_reward
from dforce.align.rewards.protocol import Reward, Subject, Watched
from dforce.align.rewards.store import load_reward, needed_encoder
from dforce.data.images import load_images
from dforce.images.classifier import load_classifier, train_classifier
from dforce.images.model import ImageModel, draw

BUILDABLE = ("class_log_prob",)  # by name, in a configuration
OTHER_SEED = 7919   # of the classifier that is a reward, apart from the one that judges
FEW_STEPS = 60      # of its training, where little is to be done
SCALED_ON = 200     # images of the base that several rewards are brought to one scale on


def open_reward(where: str | Path) -> Reward:
    """The learnt reward of a run folder, or of the reward/ folder in it, with its encoder. Raises CheckpointError."""
    name = needed_encoder(where)
    return load_reward(where, encoder=None if name is None else load_classifier(name))


def class_log_prob(subject: Subject, *, steps: int) -> Watched:
    """log p(class) by a classifier that is trained here, watched by the one that judges.

    steps: of its training. ValueError where the images of the data are not those of the model.
    """
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
    """The reward of a name, or the weighted sum of several.

    several: name -> weight; each is brought to mean 0 and deviation 1 on images of the model, drawn by `seed`.
    ValueError for what there is not.
    """
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
