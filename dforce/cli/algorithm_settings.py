"""The settings of an algorithm that suit one kind of model: `usual` in its YAML."""

from collections.abc import Collection, Mapping
from typing import Any

from dforce.config import Node, option, options
from dforce.runs.folder import Invocation

Usual = Mapping[str, Mapping[str, Any]]


def suited(node: Node, usual: Usual, given: Collection[str] = ()) -> Node:
    """An algorithm's node with the settings usual for `all` or for it that it has, but for the keys given."""
    names = [name for name in options("algorithm") if option("algorithm", name)["_target_"] == node["_target_"]]
    chosen = {key: value for name in ("all", *names) for key, value in (usual.get(name) or {}).items()}
    return {**node, **{key: value for key, value in chosen.items() if key in node and key not in given}}


def with_usual(cfg: Mapping[str, Any], call: Invocation) -> tuple[dict[str, Any], Invocation]:
    """The configuration with cfg["usual"] in its algorithm, where the command line says nothing else."""
    given = [key.removeprefix("algorithm.") for key in call.given if key.startswith("algorithm.")]
    changed = {**cfg, "algorithm": suited(cfg["algorithm"], cfg["usual"], given)}
    return changed, call._replace(config=changed)
