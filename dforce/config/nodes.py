"""Configuration nodes: `_target_` mirrors a constructor; every key is checked against it before anything is built.

A node is a mapping such as `{_target_: dforce.core.loss.min_snr, gamma: 5.0}`. With `_partial_: true` it builds a
function still waiting for its other arguments. What the data dictate is given to `build`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml

from dforce.config.domains import check_numbers
from dforce.config.moved import present_name
from dforce.config.values import described, fits, fitted, hints_of, line_of, nearest, require_name, to_plain

T = TypeVar("T")
RESERVED = ("_target_", "_partial_")
# Parts of dforce whose constructors a command line, and those that a checkpoint, may name.
ROOMS = tuple(f"dforce.{room}" for room in ("core", "guidance", "nets", "train", "policy", "align", "planning",
                                            "images", "video"))
CHECKPOINT_ROOMS = ("dforce.core.schedule", "dforce.nets")


Node = dict[str, Any]  # a configuration node that is still to be built, for data decide some of its arguments


class Scope(NamedTuple):
    """What may be built. trusted: packages beside dforce; rooms: parts of dforce."""

    trusted: tuple[str, ...]
    rooms: Sequence[str]

    @classmethod
    def of(cls, trust: Iterable[str] | str | None, rooms: Sequence[str] = ROOMS) -> Scope:
        return cls((trust,) if isinstance(trust, str) else tuple(trust or ()), rooms)


def check(config: Any, *, trust: Iterable[str] | str | None = None, files: Sequence[Path] = ()) -> None:
    """ValueError for a wrong node of `config`: its target, its keys, the types of its values; it names the nearest key.

    config: a (nested) mapping, a plain one or OmegaConf's. trust: further packages whose names may be targets. files:
    YAML files that config was composed from, searched for the line to name.
    """
    plain = to_plain(config)
    check_numbers(plain, files=files)
    _check_node(plain, "", Scope.of(trust), files)


def build(node: Any, *, trust: Iterable[str] | str | None = None, rooms: Sequence[str] = ROOMS,
          **from_data: Any) -> Any:
    """Instantiates a node, inner nodes first; `from_data` goes to the outermost target. ValueError as of `check`.

    build({"_target_": "dforce.core.loss.min_snr", "gamma": 5.0}) == dforce.core.loss.min_snr(gamma=5.0).
    """
    node = to_plain(node)
    if not (isinstance(node, dict) and "_target_" in node):
        raise ValueError(f"expected a node with a _target_, got {node!r}; "
                         "e.g. {_target_: dforce.core.schedule.linear}")
    scope = Scope.of(trust, rooms)
    check_numbers(node)
    _check_node(node, "", scope, ())
    both = sorted(set(node) & set(from_data))
    if both:
        raise ValueError(f"{node['_target_']}: {', '.join(both)} is given by the data; remove it from the config")
    return _build_node(node, scope, from_data)


def read(config: Any, kind: type[T], *, trust: Iterable[str] | str | None = None, **more: Any) -> T:
    """A dataclass or NamedTuple `kind` from the keys of a configuration that are called as its fields are.

    Fields annotated `Node` keep a node as it is, in others nodes are built; trust: as in `check`. more: fields that no
    key has. ValueError for a value that does not fit its field.
    """
    values, hints = to_plain(config), typing.get_type_hints(kind)
    chosen = {name: values[name] for name in hints if name in values and name not in more}
    check_numbers(chosen)
    for name, value in chosen.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{name} must be {described(hints[name])}, got {value!r}")
        if hints[name] not in (Node, Node | None):
            chosen[name] = fitted(_build_node(value, Scope.of(trust), {}), hints[name])
    return kind(**chosen, **more)


def resolve(path: Any, *, trust: Iterable[str] | str | None = None, rooms: Sequence[str] = ROOMS) -> Callable[..., Any]:
    """The constructor that a dotted path names; ValueError says which name came, and which ones there are.

    path: of dforce, a name in the `BUILDABLE` of the module that defines it, or of `dforce.__all__`, within `rooms`; of
    a trusted package, any public class or function that it defines. trust: only the command line may set it.
    """
    return _resolve(path, Scope.of(trust, rooms))


def _resolve(path: Any, scope: Scope) -> Callable[..., Any]:
    trusted, rooms = scope
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise ValueError(f"_target_ must be a public dotted name such as dforce.core.schedule.linear, got {path!r}")
    if parts[0] in trusted and parts[0] != "dforce":
        return _in_trusted(path, parts, trusted)
    if parts[0] != "dforce":
        raise ValueError(f"_target_ {path!r} is outside {', '.join(('dforce', *trusted))}; allow it: trust={parts[0]}")
    place, _, name = present_name(path).rpartition(".")
    if place == "dforce":
        place = f"dforce.{importlib.import_module('dforce')._HOME.get(name, name)}"
    if not _inside(place, rooms):
        raise ValueError(f"_target_ {path!r} is nothing that a configuration may build here: it builds what "
                         f"{', '.join(rooms)} list as BUILDABLE")
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name and not place.startswith(error.name):  # the module exists and lacks something else
            raise
        raise ValueError(f"_target_ {path!r}: there is no module {place}") from None
    listed = tuple(getattr(module, "BUILDABLE", ()))
    if name not in listed:
        raise ValueError(f"_target_ {path!r} is nothing that a configuration may build{nearest(name, listed)}")
    return getattr(module, name)


def _in_trusted(path: str, parts: list[str], trusted: tuple[str, ...]) -> Callable[..., Any]:
    """Checked on the object found: `mine.rewards.os.system` is refused although its path begins with `mine`."""
    value: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        value = _step(value, ".".join(parts[:i]), part)
        owner = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if not _inside(owner, trusted):
            raise ValueError(f"_target_ {path!r} leads to {value!r}, which {parts[0]} does not define itself")
    if not (inspect.isclass(value) or (callable(value) and hasattr(value, "__qualname__"))):
        raise ValueError(f"_target_ {path!r} is {value!r}; expected a class or a function")
    return value


def _step(owner: Any, name: str, part: str) -> Any:
    """One part of a dotted path: a submodule before an attribute, for a package may lend a function the same name."""
    if isinstance(owner, types.ModuleType) and hasattr(owner, "__path__"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # the module exists and lacks something else: that is the news
                raise
    if not hasattr(owner, part):
        near = difflib.get_close_matches(part, [n for n in dir(owner) if not n.startswith("_")], n=1)
        raise ValueError(f"_target_ {name!r} does not exist" + (f"; did you mean {near[0]!r}?" if near else ""))
    return getattr(owner, part)


def _inside(module: str | None, packages: Iterable[str]) -> bool:
    return module is not None and any(module == p or module.startswith(p + ".") for p in packages)


def _check_node(node: Any, where: str, scope: Scope, files: Sequence[Path]) -> None:
    if isinstance(node, list):
        for i, child in enumerate(node):
            _check_node(child, f"{where}[{i}]", scope, files)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        try:
            target = _resolve(node["_target_"], scope)
        except ValueError as error:
            raise ValueError(f"{where or 'node'}: {error}{line_of(files, '_target_', node['_target_'])}") from None
        _check_keys(node, target, where, files)
    for key, child in node.items():
        _check_node(child, f"{where}.{key}".lstrip("."), scope, files)


def _check_keys(node: dict[str, Any], target: Callable[..., Any], where: str, files: Sequence[Path]) -> None:
    parameters = inspect.signature(target).parameters
    named = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = hints_of(target)
    for key, value in node.items():
        here = f"{where}.{key}".lstrip(".")
        if key == "_partial_" and not isinstance(value, bool):
            raise ValueError(f"{here} must be true or false, got {value!r}{line_of(files, key)}")
        if key in RESERVED:
            continue
        if key not in named and not open_ended:
            raise ValueError(f"{here}: {node['_target_']} takes no {key!r}{nearest(key, named)}{line_of(files, key)}")
        is_node = isinstance(value, dict) and "_target_" in value
        if key in hints and not is_node and not fits(value, hints[key]):
            if not (value is None and key in parameters and parameters[key].default is None):
                raise ValueError(f"{here} must be {described(hints[key])}, got {value!r}{line_of(files, key)}")


def _build_node(node: Any, scope: Scope, from_data: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_build_node(child, scope, {}) for child in node]
    if not isinstance(node, dict):
        return node
    built = {key: _build_node(value, scope, {}) for key, value in node.items() if key not in RESERVED}
    if "_target_" not in node:
        return built
    target = _resolve(node["_target_"], scope)
    hints = hints_of(target)
    arguments = {**{key: fitted(value, hints.get(key)) for key, value in built.items()}, **from_data}
    if node.get("_partial_"):
        return functools.partial(target, **arguments)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{node['_target_']}: {error}") from None
    return target(**arguments)


def options(group: str) -> list[str]:
    """The names of the options of a group."""
    folder = files("dforce.configs") / group
    return sorted(file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml"))


def option(group: str, name: str) -> Node:
    """The node of one option. ValueError, with the nearest name, where there is none."""
    require_name(name, options(group), f"no {group}")
    return dict(yaml.safe_load((files("dforce.configs") / group / f"{name}.yaml").read_text("utf-8")))
