"""The rewards of `dforce align`: by name, learnt, one's own, or several at once; and what watches them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.align.rewards.builtin import Brightness, ClassLogProb, Jpeg, Spread, per_frame
from dforce.align.rewards.combined import Weighted, scales_of
from dforce.align.rewards.protocol import Reward
from dforce.align.rewards.store import load_reward
from dforce.config import build, nearest, resolve
from dforce.data.images import load_images
from dforce.images.classifier import Classifier, train_classifier
from dforce.images.model import ImageModel, draw

PICTURED = ("jpeg", "incompressible", "bright", "dark")  # of single images, whatever they show
NAMES = (*PICTURED, "class", "spread")
OTHER_SEED = 7919   # of the classifier that is a reward, apart from the one that judges
FEW_STEPS = 60      # of its training under fast_dev_run
STEPS = 600
SCALED_ON = 200     # images of the base that several rewards are brought to one scale on


class Rewards(NamedTuple):
    """tuned: what is tuned on. held_out: the same wish by another instrument, None where there is none. parts: the
    rewards that `tuned` is made of, where there are several."""

    name: str
    tuned: Reward
    held_out: Reward | None
    parts: dict[str, Reward]


def rewards_of(cfg: Any, model: ImageModel, judge: Classifier | None) -> Rewards:
    """What cfg.reward, or cfg.rewards, means for this model. judge: who judges classes; it is never tuned on.

    Several are a sum weighted after each was brought to mean 0 and deviation 1 on images of the model. ValueError for
    what there is not.
    """
    if cfg.rewards is None:
        tuned, held_out = _one(str(cfg.reward), cfg, model, judge)
        return Rewards(str(cfg.reward), tuned, held_out, {})
    weights = {str(name): float(weight) for name, weight in cfg.rewards.items()}
    if not weights:
        raise ValueError("rewards is empty: give {jpeg: 1, class: 0.5}, or reward alone")
    parts = {name: _one(name, cfg, model, judge)[0] for name in weights}
    labels = torch.arange(SCALED_ON) % len(model.classes)
    x = draw(model, labels.to(cfg.device), seed=cfg.eval_seed + 2).detach()
    total = Weighted(parts, weights, statistics=scales_of(parts, x, labels.tolist()))
    return Rewards(" + ".join(f"{weight:g} {name}" for name, weight in weights.items()), total, None, parts)


def _one(name: str, cfg: Any, model: ImageModel, judge: Classifier | None) -> tuple[Reward, Reward | None]:
    """A reward, and the one that watches it."""
    if name == "class":
        own = train_classifier(load_images(model.data), seed=cfg.seed + OTHER_SEED,
                               steps=FEW_STEPS if cfg.fast_dev_run else STEPS)
        if own.classes != model.classes or own.shape != model.shape:
            raise ValueError(f"the images of {model.data} are no longer those that this model was trained on")
        return ClassLogProb(own.to(cfg.device)), ClassLogProb(judge) if judge is not None else None
    if name == "spread":
        return Spread(), None
    return pictured(name, max(model.shape[1:]), trust=cfg.trust, known=NAMES)


def pictured(name: str, side: int, *, trust: Any = None,
             known: Sequence[str] = PICTURED) -> tuple[Reward, Reward | None]:
    """A reward of single images of so many pixels a side, by name, and the one that watches it. known: in errors."""
    if name in ("jpeg", "incompressible"):
        sign, size = -1.0 if name == "jpeg" else 1.0, max(64, side)
        # The same wish, another instrument: other steps of quantisation, another grid of blocks.
        other = Jpeg(quality=75, size=size - size // 4 if size > side else size, sign=sign)
        return Jpeg(size=size, sign=sign), other
    if name in ("bright", "dark"):
        return Brightness(1.0 if name == "bright" else -1.0), None
    if Path(name).is_dir():
        learnt = load_reward(name)
        return lambda x, prompts, metadata: _learnt(learnt, x, prompts, metadata), None
    if "." in name:
        return resolve(name, trust=trust), None
    raise ValueError(f"no reward {name!r}{nearest(name, known)}; or a run folder of `dforce train reward`, or a "
                     "function of a package of yours, mine.rewards.bright, with trust=mine")


def lifted(reward: Any, side: int, *, trust: Any = None) -> Rewards:
    """A reward of images as one of videos, the mean over the frames: a name, or a node with a _target_ that builds it.

    side: pixels of the longer side of a frame. ValueError for what there is not, and for what is no function.
    """
    if not isinstance(reward, Mapping):
        tuned, held_out = pictured(str(reward), side, trust=trust)
        return Rewards(str(reward), per_frame(tuned), per_frame(held_out) if held_out else None, {})
    own = build(dict(reward), trust=trust)
    if not callable(own):
        raise ValueError(f"{reward['_target_']} builds a {type(own).__name__}, which is no reward: a function "
                         "(images, prompts, metadata) -> [B] is wanted, or _partial_: true before one that exists")
    return Rewards(str(reward["_target_"]), per_frame(own), None, {})


def _learnt(reward: Reward, x: Tensor, prompts: Any, metadata: Any) -> Any:
    """A learnt reward knows images as files hold them."""
    return reward(x.clamp(-1, 1).cpu(), prompts, metadata)
