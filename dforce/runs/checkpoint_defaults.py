"""Checkpoints as commands take them: which ship, and the settings that come with one unless a command is given others.
"""

import copy
import json
from collections.abc import Collection, Mapping
from typing import Any

from dforce.train.checkpoint import PRETRAINED

KINDS = {"train": "observation", "train image": "classes", "train video": "size",
         "imitate": "tokens"}  # verb -> a key of its layouts


def no_checkpoint(verb: str) -> ValueError:
    """The error of a command that got no checkpoint and wants one of `dforce <verb>`; it lists those that ship."""
    layouts = {file.parent.name: json.loads(file.read_text(encoding="utf-8"))
               for file in sorted(PRETRAINED.glob("*/layout.json"))}
    ships = {kind: [name for name, layout in layouts.items() if key in layout] for kind, key in KINDS.items()}
    others = "; ".join(f"{', '.join(names)} of `dforce {kind}`" for kind, names in ships.items() if kind != verb)
    return ValueError(f"checkpoint is needed: a run folder or a checkpoint of `dforce {verb}`, or a model that ships "
                      f"with dforce ({', '.join(ships[verb]) or 'none does'}; for other commands {others})")


def defaults(config: Mapping[str, Any], settings: Mapping[str, Any], *, given: Collection[str],
             unless: Collection[str] = ()) -> dict[str, Any]:
    """A copy of a configuration with the settings of a checkpoint, but for those that the command line names.

    config: plain nested dictionaries. settings: dotted key -> value. given: dotted keys that the command line names.
    unless: keys by which the command line asks for something that has settings of its own; nothing is changed then.
    What is taken over is printed.
    """
    chosen = {key: value for key, value in settings.items() if key not in given}
    if not chosen or set(given) & set(unless):
        return with_settings(config, {})
    print("settings that come with the checkpoint: " + " ".join(f"{key}={value}" for key, value in chosen.items()))
    return with_settings(config, chosen)


def with_settings(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration with some values changed. settings: dotted key -> value."""
    changed = copy.deepcopy(dict(config))
    for key, value in settings.items():
        *parents, last = key.split(".")
        node = changed
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return changed
