"""Config groups by name: the nodes in configs/<group>/<option>.yaml."""

from importlib.resources import files

import yaml

from dforce.config.nodes import Node
from dforce.config.values import nearest


def options(group: str) -> list[str]:
    """The names of the options of a group."""
    folder = files("dforce.configs") / group
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def option(group: str, name: str) -> Node:
    """The node of one option. ValueError, with the nearest name, where there is none."""
    if name not in options(group):
        raise ValueError(f"no {group} {name!r}{nearest(name, options(group))}")
    return dict(yaml.safe_load((files("dforce.configs") / group / f"{name}.yaml").read_text("utf-8")))
