"""Values of a configuration: which fit an annotation, and what a message says of those that do not."""

import dataclasses
import difflib
import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

VALUES = 100_000  # of a file, with every alias written out; configurations have a few hundred
BYTES = 2**24


def check_like(config: Mapping[str, Any], text: str) -> None:
    """ValueError where a key has not the type of its default in `text`; null where its comment speaks of null."""
    optional = set(re.findall(r"^(\w+):.*#.*\bnull\b", text, re.MULTILINE))
    for key, default in (yaml.safe_load(text) or {}).items():
        value = config.get(key)
        if value is None and key in optional:
            continue
        hint = {bool: bool, int: int, float: float, str: str}.get(type(default))
        if hint is not None and not fits(value, hint):
            got = "null" if value is None else repr(value)
            raise ValueError(f"{key} must be {described(hint)}, as its default {default!r}, got {got}")


def nearest(key: str, names: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """`; did you mean 'x'? valid: a, b, x`. elsewhere: last part -> full name of keys to try where none is near."""
    names = sorted(names)
    near = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    if not near and elsewhere:
        near = [elsewhere[name] for name in difflib.get_close_matches(key, elsewhere, n=1, cutoff=0.5)]
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" valid: {', '.join(names) or 'none'}"


def require_name(name: str, names: Iterable[str], what: str) -> None:
    """ValueError, `<what> 'name'` and the nearest one, for a name that is not among `names`."""
    if name not in names:
        raise ValueError(f"{what} {name!r}{nearest(name, names)}")


def line_of(files: Sequence[Path], key: str, value: Any = None) -> str:
    """` (file.yaml, line n)` of the first file that has the key, or nothing."""
    pattern = re.compile(rf"\b{re.escape(key)}\s*:" + (rf"\s*['\"]?{re.escape(str(value))}" if value else ""))
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if pattern.search(line.split("#")[0]):
                return f" ({file}, line {number})"
    return ""


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        of_fields = dataclasses.is_dataclass(target)  # annotated in the modules of all classes that it derives from
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) and not of_fields else target)
    except Exception:  # an annotation known to type checkers only: its types go unchecked, its keys do not
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Does a YAML value fit an annotation? Judged are int, float, bool, str, tuple, list, dict, Literal, what takes a
    node (functions), and their unions."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in inner)
    if origin is typing.Literal:
        return value in inner
    if hint is None or hint is type(None):
        return value is None
    if hint in (int, float):
        return isinstance(value, int if hint is int else (int, float)) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if origin in (Callable, functools.partial):
        return callable(value) or isinstance(value, Mapping)
    if list in (hint, origin):
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value if inner)
    if origin in (dict, Mapping) or hint is dict:
        return isinstance(value, Mapping) and all(fits(each, inner[1]) for each in value.values() if inner)
    if hint is tuple or origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False
        if not inner or inner[-1] is Ellipsis:
            return not inner or all(fits(each, inner[0]) for each in value)
        return len(value) == len(inner) and all(map(fits, value, inner))
    return True


def fitted(value: Any, hint: Any) -> Any:
    """A YAML list as the tuple that the annotation asks for; anything else as it is."""
    inner = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if isinstance(value, list) and any(tuple in (each, typing.get_origin(each)) for each in inner):
        return tuple(value)
    return value


def described(hint: Any) -> str:
    """An annotation in words: "a whole number or null"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null",
             None: "null"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(map(described, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) in (Callable, functools.partial, dict, Mapping) or hint is dict:
        return "a mapping, or a node with its _target_"
    if list in (hint, typing.get_origin(hint)):
        return "a list, each entry " + (described(typing.get_args(hint)[0]) if typing.get_args(hint) else "anything")
    if tuple in (hint, typing.get_origin(hint)):
        return f"a list of {', '.join(described(each) for each in typing.get_args(hint) if each is not ...)}"
    return getattr(hint, "__name__", str(hint))


def to_plain(config: Any) -> Any:
    """OmegaConf containers as plain ones, without importing OmegaConf for those who use plain dicts."""
    if type(config).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        return OmegaConf.to_container(config, resolve=True)
    if isinstance(config, Mapping):
        return {key: to_plain(value) for key, value in config.items()}
    return [to_plain(value) for value in config] if isinstance(config, list) else config


def to_yaml(config: Any) -> str:
    """The text of a configuration, resolved."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config), resolve=True)


def bounded_yaml(file: Path) -> str:
    """The text of a YAML file. ValueError, which names it, if it is no YAML, or larger than VALUES written out."""
    if file.stat().st_size > BYTES:
        raise ValueError(f"{file} has {file.stat().st_size:,} bytes, a configuration has at most {BYTES:,}")
    try:
        text = file.read_text(encoding="utf-8")
        count = _written_out(yaml.compose(text, Loader=yaml.SafeLoader), {})
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise ValueError(f"{file} is no YAML file that can be read ({problem})") from error
    if count > VALUES:
        raise ValueError(f"{file} has {count:,.0f} values, its aliases written out; at most {VALUES:,} are read")
    return text


def _written_out(node: yaml.Node | None, counts: dict[int, float]) -> float:
    """Number of values of a node, those of an alias counted wherever it stands; infinite for one that holds itself."""
    if node is None or id(node) in counts:
        return counts.get(id(node), 0)
    counts[id(node)] = float("inf")  # until it is known
    if isinstance(node, yaml.MappingNode):
        inner = [part for pair in node.value for part in pair]
    else:
        inner = node.value if isinstance(node, yaml.SequenceNode) else []
    counts[id(node)] = 1 + sum(_written_out(part, counts) for part in inner)
    return counts[id(node)]
