"""The manual of the command line, made of the YAML files: `dforce --help` and `dforce <verb> <kind> --help`.

`dforce <verb> <kind>` is configs/verbs/<verb>/<kind>.yaml; what `dforce <verb>` alone does is the kind of the verb's
own name. A name here is "train/image", or "train" for the kind of the verb's own name.
"""

import re
from functools import cache
from importlib.resources import files

USAGE = "usage: dforce <verb> [kind] [key=value ...]      dforce <verb> [kind] --help      dforce --version"
ENDING = """\
Overrides are Hydra's: `dforce train fit.lr=1e-3 net.width=9`; `-m seed=0,1,2` runs one job a value, and with
`hydra/launcher=submitit_slurm` (pip install 'dforce[slurm]') each as a job of SLURM; `--cfg job` prints the
configuration that would run; `out=FOLDER` chooses the run folder (default runs/<verb>/<time>); `fast_dev_run=true`
does everything once, small. DFORCE_TRACEBACK=1 shows where a mistake was noticed."""
GLOBAL = "# @package _global_\n"  # Hydra's, first in every file


@cache
def kinds() -> dict[str, list[str]]:
    """Verb -> its kinds, the one of its own name first."""
    verbs = {folder.name: sorted((file.name[:-5] for file in folder.iterdir() if file.name.endswith(".yaml")),
                                 key=lambda kind: (kind != folder.name, kind))
             for folder in (files("dforce.configs") / "verbs").iterdir() if folder.is_dir()}
    return {verb: names for verb, names in sorted(verbs.items()) if names}


def named(words: list[str]) -> tuple[str, list[str]]:
    """[train, image, seed=1] -> train/image, [seed=1]. ValueError for a kind that does not exist, or is missing."""
    from dforce.config import nearest

    verb, *rest = words
    there = kinds()[verb]
    if rest and re.fullmatch(r"[A-Za-z][\w-]*", rest[0]):
        if rest[0] not in there or rest[0] == verb:
            others = [kind for kind in there if kind != verb]
            if not others:
                pair = "=".join(rest[:2]) if len(rest) > 1 and "=" not in rest[1] else f"KEY={rest[0]}"
                raise ValueError(f"dforce {verb} takes key=value, got the bare word {rest[0]!r}: write {pair}?")
            raise ValueError(f"dforce {verb} has no kind {rest[0]!r}{nearest(rest[0], others)}")
        return f"{verb}/{rest[0]}", rest[1:]
    if verb in there or any(word in ("-h", "--help") for word in rest):
        return verb, rest
    raise ValueError(f"{verb} what? {', '.join(f'dforce {verb} {kind}' for kind in there)}")


def file_of(name: str) -> str:
    """The YAML of a verb's kind, below configs and without its ending: train -> verbs/train/train."""
    verb, _, kind = name.partition("/")
    return f"verbs/{verb}/{kind or verb}"


def text_of(name: str) -> str:
    """Text of the YAML of a verb's kind; "" where there is none."""
    file = files("dforce.configs") / f"{file_of(name)}.yaml"
    return file.read_text("utf-8").removeprefix(GLOBAL) if file.is_file() else ""


def overview() -> str:
    """All verbs and kinds, a line each."""
    names = [verb if kind == verb else f"{verb}/{kind}" for verb, there in kinds().items() for kind in there]
    lines = [f"  {name.replace('/', ' '):<18} {_comment(text_of(name))[0]}" for name in names]
    return "\n".join(["dforce: Diffusion Forcing", "", USAGE, "", *lines, "", ENDING])


def help_of(name: str) -> str:
    """What a verb's kind does, the options of the config groups it uses, then its own YAML, comments and all."""
    verb, text = name.partition("/")[0], text_of(name)
    about = _comment(text)
    others = [f"see also: dforce {verb} {kind} --help" for kind in kinds()[verb]
              if kind != verb and f"{verb}/{kind}" != name]
    if not text:
        return "\n".join([f"dforce {verb} <kind>", *others, "", ENDING])
    lines = ["\n".join(about), "", f"usage: dforce {name.replace('/', ' ')} [key=value ...]", *others]
    for folder in sorted((f for f in files("dforce.configs").iterdir() if f.is_dir()), key=lambda f: f.name):
        options = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))
        default = re.search(rf"^\s*- (?:override )?/?{folder.name}:\s*(\S+)", text, re.MULTILINE)
        if options and default:
            lines.append(f"  {folder.name}={'|'.join(options)}   (default {default[1]})")
            lines += [f"      {line}" for line in (folder / f"{default[1]}.yaml").read_text("utf-8").splitlines()]
    for other, key in re.findall(r"^\s*- /verbs/\w+/(\w+)@(\w+)\s*$", text, re.MULTILINE):
        lines.append(f"  {key}.*   (the keys of `dforce {other} --help`)")
    body = text.splitlines()[len(about):]
    return "\n".join([*lines, "", "keys and defaults:", *(f"  {line}" for line in body), "", ENDING])


def _comment(text: str) -> list[str]:
    """The lines of the comment that a YAML file begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return lines or [""]
