"""Sets of prompts by their names, those of DDPO (Black et al. 2023), and prompts that are kept for judging."""

from importlib.resources import files

import torch

from dforce.config.values import require_name

# the 45 common animals of github.com/kvablack/ddpo-pytorch, assets/simple_animals.txt
ANIMALS = ("cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow", "goat", "lion",
           "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant", "butterfly", "fish", "shark", "whale",
           "dolphin", "squirrel", "mouse", "rat", "snake", "turtle", "frog", "chicken", "duck", "goose", "bee", "pig",
           "turkey", "fly", "llama", "camel", "bat", "gorilla", "hedgehog", "kangaroo")
ACTIVITIES = ("washing dishes", "riding a bike", "playing chess")
UNSEEN = "taking an exam"
VOWELS = tuple("aeiouAEIOU")
PROMPT_SETS = ("animals45", "imagenet_animals", "activities", "activities_unseen")


def prompt_set(name: str) -> list[str]:
    """The prompts of one of `PROMPT_SETS`, in a fixed order.

    animals45: common animals; imagenet_animals: the 398 of ImageNet; activities: "a(n) [animal] [activity]" of every
    one of the 45 and "washing dishes", "riding a bike", "playing chess"; activities_unseen: of "taking an exam".
    """
    require_name(name, PROMPT_SETS, "no set of prompts")
    if name == "animals45":
        return list(ANIMALS)
    if name == "imagenet_animals":
        lines = (files("dforce.images") / "imagenet_animals.txt").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line and not line.startswith("#")]
    activities = ACTIVITIES if name == "activities" else (UNSEEN,)
    return [f"{with_article(animal)} {activity}" for animal in ANIMALS for activity in activities]


def with_article(noun: str) -> str:
    """a cat, an ant: by the first letter."""
    return f"{'an' if noun.startswith(VOWELS) else 'a'} {noun}"


def split_prompts(count: int, share: float, *, seed: int = 0) -> tuple[list[int], list[int]]:
    """Numbers of the prompts to tune on, and of those that are held out, at least one of each; both in order.

    count: of all prompts. share: of them that is held out, in 0..1, rounded. The same seed holds out the same.
    """
    if not 0 < share < 1 or count < 2:
        raise ValueError(f"a share in 0..1 of two prompts or more is held out, got {share:g} of {count}")
    held = min(max(round(share * count), 1), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[held:]), sorted(order[:held])
