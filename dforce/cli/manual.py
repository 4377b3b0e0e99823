"""The manual of the command line, made of the YAML files: `dforce --help` and `dforce <verb> --help`."""

from __future__ import annotations

import re
from importlib.resources import files

USAGE = "usage: dforce <verb> [key=value ...]      dforce <verb> --help      dforce --version"
ENDING = """\
Overrides are Hydra's: `dforce train fit.lr=1e-3 net.width=9`; `-m seed=0,1,2` runs one job a value; `--cfg job` prints
the configuration that would run; `out=FOLDER` chooses the run folder (default runs/<verb>/<time>)."""
FOLDERS = {"data": "datasets"}  # of a verb's kinds: a folder configs/data would be a group, and data=... choose in it


def file_of(verb: str) -> str:
    """The YAML of a verb or of its kind, below configs and without its ending: data/video -> datasets/video."""
    verb, _, kind = verb.partition("/")
    return f"{FOLDERS.get(verb, verb)}/{kind}" if kind else verb


def verbs() -> dict[str, str]:
    """Verb -> text of its YAML."""
    found = {f.name[:-5]: f.read_text("utf-8") for f in files("dforce.configs").iterdir() if f.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def kinds(verb: str) -> list[str]:
    """Kinds of a verb that have a configuration of their own: configs/<verb>/<kind>.yaml, of data configs/datasets/."""
    folder = files("dforce.configs") / FOLDERS.get(verb, verb)
    return sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")) if folder.is_dir() else []


def with_kind(verb: str, words: list[str]) -> tuple[str, list[str]]:
    """benchmark, [planning, ...] -> benchmark/planning, [...] if that kind has a configuration of its own.

    A verb whose YAML has a key `target` is always of the kind that `target=` or a bare first word names, by default
    that of the YAML. Of a target that does not exist nothing else is looked at: the verb says which there are.
    """
    if words and words[0] in kinds(verb):
        return f"{verb}/{words[0]}", words[1:]
    usual = re.search(r"^target: (\w+)", text_of(verb), re.MULTILINE)
    if usual is None:
        return verb, words
    if words and re.fullmatch(r"\w[\w-]*", words[0]):
        words = [f"target={words[0]}", *words[1:]]
    named = [word for word in words if word.startswith("target=")]
    if not named and any(word in ("-h", "--help") for word in words):
        return verb, words
    target = named[-1].partition("=")[2] if named else usual[1]
    if target not in kinds(verb):
        return verb, [f"target={target}"]
    return f"{verb}/{target}", [word for word in words if word not in named]


def text_of(verb: str) -> str:
    """Text of the YAML of a verb, or of its kind: `benchmark/planning`. "" where there is none."""
    file = files("dforce.configs") / f"{file_of(verb)}.yaml"
    return file.read_text("utf-8").removeprefix("# @package _global_\n") if file.is_file() else ""  # Hydra's, first


def overview() -> str:
    lines = [f"  {verb:<9} {_comment(text)[0]}" for verb, text in verbs().items()]
    lines += [f"  {verb} {kind}: {_comment(text_of(f'{verb}/{kind}'))[0]}" for verb in verbs() for kind in kinds(verb)]
    return "\n".join(["dforce: Diffusion Forcing", "", USAGE, "", "verbs:", *lines, "", ENDING])


def verb_help(verb: str) -> str:
    """What the verb does, the options of the config groups it uses, then its own YAML, comments and all."""
    text = text_of(verb)
    about = _comment(text)
    body = text.splitlines()[len(about) :]
    lines = ["\n".join(about), "", f"usage: dforce {verb.replace('/', ' ')} [key=value ...]"]
    lines += [f"see also: dforce {verb} {kind} --help" for kind in kinds(verb)]
    for folder in sorted((f for f in files("dforce.configs").iterdir() if f.is_dir()), key=lambda f: f.name):
        options = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))
        default = re.search(rf"^\s*- /?{folder.name}:\s*(\S+)", text, re.MULTILINE)
        if options and default:
            lines.append(f"  {folder.name}={'|'.join(options)}   (default {default[1]})")
            lines += [f"      {line}" for line in (folder / f"{default[1]}.yaml").read_text("utf-8").splitlines()]
    for other, key in re.findall(r"^\s*- (\w+)@(\w+)\s*$", text, re.MULTILINE):
        lines.append(f"  {key}.*   (the keys of `dforce {other} --help`)")
    return "\n".join([*lines, "", "keys and defaults:", *(f"  {line}" for line in body), "", ENDING])


def _comment(text: str) -> list[str]:
    """The lines of the comment that a YAML file begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return lines or [""]
