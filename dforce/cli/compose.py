"""Configurations of other kinds of a verb, composed inside a command as its own was."""

from collections.abc import Mapping
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from dforce.cli import manual


def composed(name: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The plain configuration of `dforce <name>` with changes: dotted keys, choices of groups, ~keys to delete."""
    overrides = [key if key.startswith("~") else f"{key}={_grammar(value)}" for key, value in changes.items()]
    if GlobalHydra.instance().is_initialized():  # inside a command: the user's --config-dir counts
        cfg = compose(manual.file_of(name), overrides)
    else:
        with initialize_config_module("dforce.configs", version_base="1.3"):
            cfg = compose(manual.file_of(name), overrides)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    return plain


def _grammar(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_grammar, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_grammar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)
