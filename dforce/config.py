"""Configuration nodes: `_target_` mirrors a constructor; every key is checked against it before anything is built.

A node is a mapping such as `{_target_: dforce.core.loss.min_snr, gamma: 5.0}`. With `_partial_: true` it builds a
function still waiting for its other arguments. YAML holds what a person chooses; what the data dictate is given to
`build`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dforce.moved import moved

RESERVED = ("_target_", "_partial_")
APPLICATION = ("dforce.cli", "dforce.config", "dforce.runs", "dforce.train.checkpoint")  # these touch files


def check(cfg: Any, *, trust: Iterable[str] | str | None = None, files: Sequence[Path] = ()) -> None:
    """Checks every node of `cfg` that has a `_target_`: the target, its keys, the types of its values.

    cfg: (nested) mapping, a plain one or OmegaConf's. trust: further packages whose names may be targets.
    files: YAML files that cfg was composed from, searched for the line to name in a message.
    Raises ValueError that names the key, the nearest right one, all right ones, and the file and line.
    """
    _check_node(_plain(cfg), "", _packages(trust), files)


def check_like(cfg: Mapping[str, Any], text: str) -> None:
    """Checks the plain keys of a verb's configuration against the defaults in its YAML `text`.

    Raises ValueError where a number, a switch or a word has become something else. Null defaults take anything; other
    keys take null where the comment beside them says what that means.
    """
    optional = set(re.findall(r"^(\w+):.*#.*\bnull\b", text, re.MULTILINE))
    for key, default in (yaml.safe_load(text) or {}).items():
        value = cfg.get(key)
        if value is None and key in optional:
            continue
        hint = {bool: bool, int: int, float: float, str: str}.get(type(default))
        if hint is not None and not _fits(value, hint):
            raise ValueError(f"{key} must be {hint.__name__}, as its default {default!r}, got {value!r}")


def build(node: Any, *, trust: Iterable[str] | str | None = None, **from_data: Any) -> Any:
    """Instantiates a node, inner nodes first; `from_data` goes to the outermost target only.

    build({"_target_": "dforce.core.loss.min_snr", "gamma": 5.0}) == dforce.core.loss.min_snr(gamma=5.0).
    Raises ValueError for whatever `check` refuses, a missing argument, or one given by both the node and the data.
    """
    node = _plain(node)
    if not (isinstance(node, dict) and "_target_" in node):
        raise ValueError(f"expected a node with a _target_, got {node!r}; "
                         "e.g. {_target_: dforce.core.schedule.linear}")
    packages = _packages(trust)
    _check_node(node, "", packages, ())
    both = sorted(set(node) & set(from_data))
    if both:
        raise ValueError(f"{node['_target_']}: {', '.join(both)} is given by the data; remove it from the config")
    return _build_node(node, packages, from_data)


def resolve(path: Any, *, trust: Iterable[str] | str | None = None) -> Callable[..., Any]:
    """The class or function that a dotted path names, if dforce (or a trusted package) defines and exports it.

    Checked on the object found, so `dforce.cli.main.os.system` is refused although its path begins with dforce.
    """
    return _resolve(path, _packages(trust))


def _packages(trust: Iterable[str] | str | None) -> tuple[str, ...]:
    return ("dforce", trust) if isinstance(trust, str) else ("dforce", *(trust or ()))


def _resolve(path: Any, packages: tuple[str, ...]) -> Callable[..., Any]:
    """What `path` names; an old name that leads nowhere now is looked up where its part has moved to."""
    try:
        return _named(path, packages)
    except ValueError:
        if not isinstance(path, str) or moved(path) == path:
            raise
        return _named(moved(path), packages)


def _named(path: Any, packages: tuple[str, ...]) -> Callable[..., Any]:
    parts = path.split(".") if isinstance(path, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise ValueError(f"_target_ must be a public dotted name such as dforce.core.schedule.linear, got {path!r}")
    if parts[0] not in packages:
        raise ValueError(f"_target_ {path!r} is outside {', '.join(packages)}; a package of yours: trust={parts[0]}")
    found: Any = importlib.import_module(parts[0])
    for i, part in enumerate(parts[1:], 2):
        found = _step(found, ".".join(parts[:i]), part)
        owner = found.__name__ if isinstance(found, types.ModuleType) else getattr(found, "__module__", None)
        if not _inside(owner, packages) or _inside(owner, APPLICATION):
            raise ValueError(f"_target_ {path!r} leads to {found!r}, which is no part that {parts[0]} exports")
    if not (inspect.isclass(found) or (callable(found) and hasattr(found, "__qualname__"))):
        raise ValueError(f"_target_ {path!r} is {found!r}; expected a class or a function")
    return found


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


def _plain(cfg: Any) -> Any:
    """OmegaConf containers as plain ones, without importing OmegaConf for those who use plain dicts."""
    if type(cfg).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(cfg, resolve=True)
    if isinstance(cfg, Mapping):
        return {key: _plain(value) for key, value in cfg.items()}
    return [_plain(value) for value in cfg] if isinstance(cfg, list) else cfg


def _check_node(node: Any, where: str, packages: tuple[str, ...], files: Sequence[Path]) -> None:
    if isinstance(node, list):
        for i, child in enumerate(node):
            _check_node(child, f"{where}[{i}]", packages, files)
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        try:
            target = _resolve(node["_target_"], packages)
        except ValueError as error:
            raise ValueError(f"{where or 'node'}: {error}{_line(files, '_target_', node['_target_'])}") from None
        _check_keys(node, target, where, files)
    for key, child in node.items():
        _check_node(child, f"{where}.{key}".lstrip("."), packages, files)


def _check_keys(node: dict[str, Any], target: Callable[..., Any], where: str, files: Sequence[Path]) -> None:
    parameters = inspect.signature(target).parameters
    named = [n for n, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = _hints(target)
    for key, value in node.items():
        here = f"{where}.{key}".lstrip(".")
        if key == "_partial_" and not isinstance(value, bool):
            raise ValueError(f"{here} must be true or false, got {value!r}{_line(files, key)}")
        if key in RESERVED:
            continue
        if key not in named and not open_ended:
            raise ValueError(f"{here}: {node['_target_']} takes no {key!r}{nearest(key, named)}{_line(files, key)}")
        is_node = isinstance(value, dict) and "_target_" in value
        if key in hints and not is_node and not _fits(value, hints[key]):
            if not (value is None and key in parameters and parameters[key].default is None):
                wanted = getattr(hints[key], "__name__", None) if inspect.isclass(hints[key]) else str(hints[key])
                raise ValueError(f"{here} must be {wanted}, got {value!r}{_line(files, key)}")


def nearest(key: str, names: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """`; did you mean 'x'? valid: a, b, x`: the tail of every message about an unknown name.

    elsewhere: last part -> full name of keys in other places, asked only where none of `names` is near.
    """
    names = sorted(names)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not near and elsewhere:
        near = [elsewhere[name] for name in difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.5)]
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" valid: {', '.join(names) or 'none'}"


def _line(files: Sequence[Path], key: str, value: Any = None) -> str:
    """` (file.yaml, line n)` of the first file that has the key, or nothing."""
    pattern = re.compile(rf"\b{re.escape(key)}\s*:" + (rf"\s*['\"]?{re.escape(str(value))}" if value else ""))
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line.split("#")[0]):
                return f" ({file}, line {number})"
    return ""


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # an annotation known to type checkers only: its types go unchecked, its keys do not
        return {}


def _fits(value: Any, hint: Any) -> bool:
    """Does a YAML value fit an annotation? Only int, float, bool, str, tuple, Literal and their unions are judged."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if hint is tuple or origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        if not inner or inner[-1] is Ellipsis:
            return not inner or all(_fits(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(_fits, value, inner))
    return True


def _build_node(node: Any, packages: tuple[str, ...], from_data: Mapping[str, Any]) -> Any:
    if isinstance(node, list):
        return [_build_node(child, packages, {}) for child in node]
    if not isinstance(node, dict):
        return node
    built = {key: _build_node(value, packages, {}) for key, value in node.items() if key not in RESERVED}
    if "_target_" not in node:
        return built
    target = _resolve(node["_target_"], packages)
    hints = _hints(target)
    for key, value in built.items():
        if isinstance(value, list) and tuple in (hints.get(key), typing.get_origin(hints.get(key))):
            built[key] = tuple(value)
    arguments = {**built, **from_data}
    if node.get("_partial_"):
        return functools.partial(target, **arguments)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{node['_target_']}: {error}") from None
    return target(**arguments)
