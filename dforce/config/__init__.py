"""Configurations: nodes that are checked and built, and typed values that are read from them."""

from dforce.config.domains import check_numbers
from dforce.config.groups import option, options
from dforce.config.moved import present
from dforce.config.nodes import CHECKPOINT_ROOMS, Node, build, check, read, resolve
from dforce.config.values import check_like, nearest, to_yaml
from dforce.config.yaml_text import bounded_yaml

__all__ = ["CHECKPOINT_ROOMS", "Node", "bounded_yaml", "build", "check", "check_like", "check_numbers", "nearest",
           "option", "options", "present", "read", "resolve", "to_yaml"]
