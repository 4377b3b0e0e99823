"""Prompts as a configuration names them: a list, a file, a set by its name, or a function of a trusted package."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dforce.config import nearest, resolve
from dforce.images.prompts import PROMPT_SETS, prompt_set, split_prompts

HOW = ("give a list, ['a cat','a dog'], a text file of one a line (.jsonl: objects with \"prompt\", the rest is "
       "metadata), a set such as animals45, or a function of a package of yours that returns them, mine.prompts, with "
       "trust=mine")


class ChosenPrompts(NamedTuple):
    """texts: of images, numbers of classes where a network has classes; metadata: of each, for rewards."""

    texts: list[Any]
    metadata: list[Any]

    def some(self, numbers: list[int]) -> "ChosenPrompts":
        """Those of these numbers."""
        return ChosenPrompts([self.texts[i] for i in numbers], [self.metadata[i] for i in numbers])


def chosen_prompts(given: Any, *, key: str = "prompts", trust: Any = None) -> ChosenPrompts:
    """What a key of the configuration means. ValueError, one line, for what it cannot mean."""
    if given is None or (isinstance(given, (list, tuple)) and not given):
        raise ValueError(f"{key} is needed: {HOW}")
    if isinstance(given, str):
        given = _named(given, key, trust)
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"{key} are no {type(given).__name__}: {HOW}")
    pairs = [each if isinstance(each, (list, tuple)) and len(each) == 2 else (each, None) for each in given]
    wrong = [each for each, _ in pairs if isinstance(each, bool) or not isinstance(each, (str, int))
             or isinstance(each, str) and not each.strip()]
    if wrong or not pairs:
        raise ValueError(f"{key} are texts (or numbers of classes), got {wrong[0] if wrong else 'none'!r}: {HOW}")
    return ChosenPrompts([each for each, _ in pairs], [metadata for _, metadata in pairs])


def with_held_out(given: Any, held_out: Any, *, seed: int,
                  trust: Any = None) -> tuple[ChosenPrompts, ChosenPrompts | None]:
    """Prompts to tune on, and those that are held out: a share of the former, or prompts of their own, or None."""
    prompts = chosen_prompts(given, trust=trust)
    if isinstance(held_out, float):
        kept, out = split_prompts(len(prompts.texts), held_out, seed=seed)
        return prompts.some(kept), prompts.some(out)
    return prompts, chosen_prompts(held_out, key="held_out", trust=trust) if held_out else None


def _named(name: str, key: str, trust: Any) -> Sequence[Any]:
    """Prompts, or pairs of a prompt and its metadata."""
    file = Path(name)
    if file.suffix in (".txt", ".jsonl") or file.is_file():
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            if file.suffix != ".jsonl":
                return lines
            objects = [json.loads(line) for line in lines]
            return [(each["prompt"], {name: value for name, value in each.items() if name != "prompt"})
                    for each in objects]
        except (UnicodeDecodeError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{key}={name} is no file of prompts ({type(error).__name__}: {error}): {HOW}") from error
    if name in PROMPT_SETS:
        return prompt_set(name)
    if " " not in name and "." in name:
        function: Any = resolve(name, trust=trust)
        return list(function()) if callable(function) else function
    raise ValueError(f"no prompts {name!r}{nearest(name, PROMPT_SETS)}: {HOW}")
