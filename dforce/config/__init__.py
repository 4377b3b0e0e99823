"""Configurations: nodes that are checked and built, and typed values that are read from them."""

from dforce.config.nodes import option, options
from dforce.config.moved import present
from dforce.config.nodes import CHECKPOINT_ROOMS, Node, build, check, read, resolve
from dforce.config.values import check_like, nearest, require_name, to_yaml
from dforce.config.values import bounded_yaml

__all__ = ["CHECKPOINT_ROOMS", "Node", "bounded_yaml", "build", "check", "check_like", "nearest", "option", "options",
           "present", "read", "require_name", "resolve", "to_yaml"]
