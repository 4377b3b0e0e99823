"""Rewards that others published, by their names: read from local folders, from a hub only where one is named."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

from dforce.align.rewards.clip_rewards import aesthetic, clip_score, hpsv2, pickscore
from dforce.align.rewards.description import description
from dforce.align.rewards.image_reward import imagereward
from dforce.align.rewards.preprocess import pictures_of
from dforce.align.rewards.protocol import Reward, Subject
from dforce.align.rewards.server import server
from dforce.config.values import described, fits, hints_of, nearest, require_name


def brisque(subject: Subject) -> Reward:
    """Minus BRISQUE (Mittal et al. 2012), 0 to -100 or so, by the package brisque, which ships its model."""
    try:
        from brisque import BRISQUE
    except ImportError as error:
        raise ImportError("the reward brisque needs its package: pip install brisque", name="brisque") from error
    scorer = BRISQUE(url=False)

    def natural(samples: torch.Tensor, prompts: Any = (), metadata: Any = ()) -> torch.Tensor:
        return -torch.tensor([float(scorer.score(picture)) for picture in pictures_of(samples)], dtype=torch.float64)
    return natural


PUBLISHED: dict[str, Callable[..., Reward]] = {
    "clip": clip_score, "aesthetic": aesthetic, "pickscore": pickscore, "hpsv2": hpsv2, "imagereward": imagereward,
    "description": description, "brisque": brisque, "server": server,
}
REFUSED = {"hpsv3": "HPSv3 is a head on Qwen2-VL-7B with tokens of its own: ask it as a server of yours, reward=server"}


def published_reward(name: str, subject: Subject) -> Reward:
    """The published reward of this name with subject.settings[name]. ValueError for what it does not take."""
    if name in REFUSED:
        raise ValueError(REFUSED[name])
    require_name(name, PUBLISHED, "no published reward")
    make, settings = PUBLISHED[name], dict((subject.settings or {}).get(name) or {})
    hints = hints_of(make)
    known = {key: one for key, one in inspect.signature(make).parameters.items() if key != "subject"}
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"the reward {name} takes no {key!r}{nearest(key, known)}")
        if not fits(value, hints[key]):
            raise ValueError(f"{key} of the reward {name} must be {described(hints[key])}, got {value!r}")
    wanted = [key for key, one in known.items() if one.default is one.empty and key not in settings]
    if wanted:
        raise ValueError(f"the reward {name} needs {', '.join(wanted)}: give reward_settings.{name}.{wanted[0]}=...")
    return make(subject, **settings)

