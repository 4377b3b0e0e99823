"""Rewards by name: a file of configs/image_reward, a folder of a learnt reward, or a function of one's own package.

A file of configs/image_reward is a node, with `_partial_: true`, of a function (subject) -> `Watched`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dforce.align.rewards.builtin import per_frame
from dforce.align.rewards.protocol import Reward, Subject, Watched
from dforce.align.rewards.store import load_reward
from dforce.config import build, nearest, option, options, resolve

GROUP = "image_reward"  # not `reward`: a key of that name takes folders and functions too, which no group does


class Rewards(NamedTuple):
    """What is tuned on, and what watches it."""

    name: str
    tuned: Reward
    held_out: Reward | None   # the same wish by another instrument
    parts: dict[str, Reward]  # that `tuned` is made of, where there are several


def named_reward(name: str, subject: Subject, *, trust: Any = None) -> Watched:
    """The reward of this name for what is tuned. ValueError for what there is not."""
    if name in options(GROUP):
        return build(option(GROUP, name))(subject)
    if Path(name).is_dir():
        learnt = load_reward(name)
        return Watched(lambda x, prompts, metadata: learnt(x.clamp(-1, 1).cpu(), prompts, metadata))  # as files are
    if "." in name:
        return Watched(resolve(name, trust=trust))
    raise ValueError(f"no reward {name!r}{nearest(name, options(GROUP))}; or a run folder of `dforce train reward`, "
                     "or a function of a package of yours, mine.rewards.bright, with trust=mine")


def reward_of_frames(reward: Any, subject: Subject, *, trust: Any = None) -> Rewards:
    """A reward of images as one of videos, the mean over the frames.

    reward: a name, or a node with a `_target_` that builds a function (images, prompts, metadata) -> [B].
    ValueError for what there is not, and for what is no function.
    """
    if not isinstance(reward, Mapping):
        tuned, held_out = named_reward(str(reward), subject, trust=trust)
        return Rewards(str(reward), per_frame(tuned), per_frame(held_out) if held_out else None, {})
    function = build(dict(reward), trust=trust)
    if not callable(function):
        raise ValueError(f"{reward['_target_']} builds a {type(function).__name__}, which is no reward: a function "
                         "(images, prompts, metadata) -> [B] is wanted, or _partial_: true before one that exists")
    return Rewards(str(reward["_target_"]), per_frame(function), None, {})
