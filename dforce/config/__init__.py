"""Configurations: nodes that are checked and built, and typed values that are read from them."""

from dforce.config.domains import check_numbers
from dforce.config.moved import present
from dforce.config.nodes import CHECKPOINT_ROOMS, Node, build, check, option, options, read, resolve
from dforce.config.values import bounded_yaml, check_like, nearest, require_name, to_yaml

__all__ = ["CHECKPOINT_ROOMS", "Node", "bounded_yaml", "build", "check", "check_like", "check_numbers", "nearest",
           "option", "options", "present", "read", "require_name", "resolve", "to_yaml"]
