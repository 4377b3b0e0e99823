"""Settings that come with a checkpoint: those a command takes for this model unless it is given others."""

import copy
from collections.abc import Collection, Mapping
from typing import Any


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
