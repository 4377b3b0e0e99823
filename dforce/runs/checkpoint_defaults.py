"""Settings that travel with a checkpoint: what a verb takes with this model unless it is told others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf


def suited(cfg: Any, settings: Mapping[str, Any], *, given: Sequence[str], unless: Collection[str] = ()) -> Any:
    """cfg with `settings` (dotted key -> value), but for those that the command line, `given`, names.

    unless: keys by which the command line asks for something that has settings of its own; nothing is changed then.
    What is taken over is printed.
    """
    named = {word.lstrip("+~").partition("=")[0] for word in given}
    chosen = {key: value for key, value in settings.items() if key not in named}
    if not chosen or named & set(unless):
        return cfg
    print("settings that come with the checkpoint: " + " ".join(f"{key}={value}" for key, value in chosen.items()))
    merged = OmegaConf.create(OmegaConf.to_container(cfg))
    for key, value in chosen.items():
        OmegaConf.update(merged, key, value, merge=False)
    return merged
