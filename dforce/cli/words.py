"""The words of a command line, checked before Hydra reads them: flags, key=value, values that its grammar can read."""

import re
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from dforce.cli import manual
from dforce.config import nearest, option, options
from dforce.runs.environment import how_to_install


def split(name: str, words: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's own flags with their values (`-m`, `--cfg job`), and the overrides: argparse wants each in one piece.

    name: of the command that they are for.
    Raises ValueError, in one line, for flags that there are not, what is no key=value, empty values, a choice that no
    group has, and values that cannot be read.
    """
    flags: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        value_of_flag = before.startswith("-") and "=" not in before + word and not word.startswith("~")
        (flags if word.startswith("-") or value_of_flag else overrides).append(word)
    _check_flags(name, flags)
    keys: dict[str, str] = {}
    theirs = any(flag.startswith(("--config-dir", "-cd")) for flag in flags)  # options of the user's own
    for word in overrides:
        key, equals, value = word.partition("=")
        if key in keys:  # as Hydra has it, so that what is common to several commands can be added to
            print(f"note: {key} is given twice, {keys[key]} and {word}; the last one counts", file=sys.stderr)
        keys[key] = word
        if not word.startswith("~") and (not key.strip("+") or not equals):
            raise ValueError(f"{word!r} is no key=value, as in seed=1")
        if not theirs and "/" not in key and (files("dforce.configs") / key).is_dir():
            _check_choice(key, value, sweep=bool({"-m", "--multirun"} & set(flags)))
        elif equals and not value:
            raise ValueError(f"{word} has no value; for none at all write {key}=null")
    return flags, [_readable(word) for word in overrides]


def _check_flags(name: str, flags: list[str]) -> None:
    """What argparse inside Hydra would refuse with its usage, refused in one line."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    known = [name for action in parser._actions for name in action.option_strings]
    for flag, after in zip(flags, [*flags[1:], ""], strict=False):
        word, _, value = flag.partition("=")
        if flag.startswith("-") and word not in known:
            key, value = word.lstrip("-").replace("-", "_"), value or after.lstrip("-") or "VALUE"
            there = key in _dotted(_composed(name)[0]) or (files("dforce.configs") / key).is_dir()
            raise ValueError(f"dforce has no flag {word}; keys are given as key=value, " + (
                f"here {key}={value}" if there else f"and {unknown_key(key, name, [])}"))

    def refuse(message: str) -> None:
        raise ValueError(f"{' '.join(flags)}: {message}")

    parser.error = refuse  # type: ignore[method-assign, assignment]
    parser.parse_args(flags)


def _check_choice(group: str, value: str, *, sweep: bool) -> None:
    """ValueError where an option of a config group is none: net=transfromer, net=[recurrent], net={width:3}."""
    for choice in value.split(",") if sweep else [value]:
        if choice.strip("'\"") not in options(group) and not choice.startswith(("glob(", "choice(")):
            raise ValueError(f"no {group} {choice!r}{nearest(choice, options(group))}")


def _readable(word: str) -> str:
    """An override as Hydra's grammar can read it: in quotes where it cannot as it is (the # of a maze, a = in a path).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, value = word.partition("=")
    quoted = key + "='" + value.replace("'", "\\'") + "'"
    for attempt in (word, *([quoted] if value and value[0] not in "[{'\"" else [])):
        try:
            OverridesParser.create().parse_override(attempt)
            return attempt
        except HydraException:
            continue
    raise ValueError(f"cannot read {word!r}: a key is words with dots between, a list is [a,b], what holds brackets, "
                     f"commas or quotes is put in quotes, \"{key or 'key'}='a,b'\"")


def origins(file: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Place in the configuration -> the file it comes from: {"": "verbs/demo/demo", "net": "net/recurrent"}."""
    text = (files("dforce.configs") / f"{file}.yaml").read_text("utf-8")
    included = re.findall(r"^\s*- /(verbs/\w+/\w+)@(\w+)\s*$", text, re.MULTILINE)
    groups = {key.split("@")[-1]: f"{key.split('@')[0]}/{choice}" for key, choice in choices.items()}
    return {"": file, **{place: other for other, place in included}, **groups}


def unknown_key(key: str, name: str, words: list[str]) -> str:
    """The nearest right key of the verb's composed configuration, and the file that defines it."""
    folder = Path(str(files("dforce.configs")))
    cfg, choices = _composed(name, [word for word in words if "=" in word and (folder / word.split("=")[0]).is_dir()])
    places = origins(manual.file_of(name), choices)
    key = key.split("@")[0]
    head, _, last = key.rpartition(".")
    parent = cfg
    for part in head.split(".") if head else []:
        parent = parent.get(part) if isinstance(parent, dict) else None
    place = head
    while place not in places:
        place = place.rpartition(".")[0]
    file = folder / f"{places[place]}.yaml"
    elsewhere = {dotted.rpartition(".")[2]: dotted for dotted in _dotted(cfg)}  # `steps` for `fit.steps`
    if isinstance(parent, dict):
        near = f"; did you mean {elsewhere[key]!r}?" if key in elsewhere else (
            _of_other_options(last, choices) or nearest(last, parent, elsewhere))
    else:
        near = nearest(key, _dotted(cfg))
    return f"dforce {name.replace('/', ' ')} has no key {key!r}{near} ({file}; to add a new key, +{key}=...)"


def _composed(name: str, overrides: list[str] | None = None) -> tuple[Any, dict[str, str]]:
    """The plain configuration of a command, and which option it took of every group."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("dforce.configs", version_base="1.3"):
        composed = compose(manual.file_of(name), overrides, return_hydra_config=True)
    cfg = OmegaConf.to_container(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
    return cfg, dict(composed.hydra.runtime.choices)


def _of_other_options(key: str, choices: Mapping[str, str]) -> str:
    """`; algorithm.beta is a key of algorithm=rwr, ...` where other options of a group in use have the key."""
    for choice in (name for name in choices if "/" not in name and not name.startswith("hydra")):
        group, _, place = choice.partition("@")  # net@train.net: one of configs/net, at train.net
        having = [name for name in options(group) if key in option(group, name)]
        if having:
            return f"; {place or group}.{key} is a key of {', '.join(f'{choice}={name}' for name in having)}"
    return ""


def unknown_option(group: str, name: str) -> str:
    """The nearest right option of a config group; for one of Hydra's own, what brings it."""
    if group.startswith("hydra/"):
        cure = f": {how_to_install('submitit')}" if "submitit" in name else ", or the plug-in that brings it is missing"
        return f"Hydra has no {group} {name!r}{cure}"
    return f"no {group} {name!r}{nearest(name, options(group))}"


def _dotted(cfg: Any, where: str = "") -> list[str]:
    if not isinstance(cfg, dict):
        return [where]
    return [name for key, value in cfg.items() for name in _dotted(value, f"{where}.{key}".lstrip("."))]
