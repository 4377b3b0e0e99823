"""The command line: `dforce <verb> [kind] [key=value ...]`, each verb a Hydra application.

A verb is a file `configs/<verb>.yaml`, whose first comment line says what it does, and a module `dforce.verbs.<verb>`
with `run(cfg, folder)`. Help is read from the YAML alone, so it comes at once: neither Hydra nor torch is imported.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dforce import __version__

USAGE = "usage: dforce <verb> [key=value ...]      dforce <verb> --help      dforce --version"
ENDING = """\
Overrides are Hydra's: `dforce train lr=1e-3 net.width=128`; `-m seed=0,1,2` runs one job a value; `--cfg job` prints
the configuration that would run; `out=FOLDER` chooses the run folder (default runs/<verb>/<time>)."""
USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dforce`. Returns the exit code: 0, 2 for a mistake of the user's (one message), 1 for one of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbs = _verbs()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview(verbs))
        return 0 if arguments else USER_ERROR
    if arguments[0] == "--version":
        print(f"dforce {__version__}")
        return 0
    verb, *rest = arguments
    if verb not in verbs:
        near = difflib.get_close_matches(verb, verbs, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return _complain(f"no verb {verb!r}; {hint}verbs: {', '.join(verbs)}")
    if any(word in ("-h", "--help") for word in rest):
        print(_verb_help(verb, verbs[verb]))
        return 0
    try:
        rest = _selected(verb, rest)
        return _launch(verb, rest)
    except Exception as error:
        key = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", str(error))
        return _complain(_unknown_key(key[1] or key[2], verb, rest)) if key else _report(error)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)


def _verbs() -> dict[str, str]:
    """Verb -> text of its YAML."""
    found = {f.name[:-5]: f.read_text("utf-8") for f in files("dforce.configs").iterdir() if f.name.endswith(".yaml")}
    return dict(sorted(found.items()))


def _overview(verbs: dict[str, str]) -> str:
    lines = [f"  {verb:<9} {_comment(text)[0]}" for verb, text in verbs.items()]
    return "\n".join(["dforce: Diffusion Forcing", "", USAGE, "", "verbs:", *lines, "", ENDING])


def _verb_help(verb: str, text: str) -> str:
    """What the verb does, the options of the config groups it uses, then its own YAML, comments and all."""
    about = _comment(text)
    body = text.splitlines()[len(about) :]
    lines = ["\n".join(about), "", f"usage: dforce {verb} [key=value ...]"]
    for folder in sorted((f for f in files("dforce.configs").iterdir() if f.is_dir()), key=lambda f: f.name):
        options = sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml"))
        default = re.search(rf"^\s*- {folder.name}:\s*(\S+)", text, re.MULTILINE)
        if options and default:
            lines.append(f"  {folder.name}={'|'.join(options)}   (default {default[1]})")
            lines += [f"      {line}" for line in (folder / f"{default[1]}.yaml").read_text("utf-8").splitlines()]
    return "\n".join([*lines, "", "keys and defaults:", *(f"  {line}" for line in body), "", ENDING])


def _comment(text: str) -> list[str]:
    """The lines of the comment that a YAML file begins with."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return lines or [""]


def _selected(verb: str, arguments: list[str]) -> list[str]:
    """`data maze steps=3` -> `kind=maze steps=3`: a bare first word chooses among the kinds of a verb."""
    if arguments and re.fullmatch(r"\w[\w-]*", arguments[0]):
        if not re.search(r"^kind:", _verbs()[verb], re.MULTILINE):
            raise ValueError(f"dforce {verb} takes key=value, got the bare word {arguments[0]!r}")
        return [f"kind={arguments[0]}", *arguments[1:]]
    return arguments


def _launch(verb: str, arguments: list[str]) -> int:
    """Composes the configuration and runs the verb through Hydra, whose launchers and sweepers all work."""
    from hydra import main as hydra_main

    # The run folder is ours (dforce.run), so Hydra leaves no folder and no log of its own behind. Defaults come first:
    # what the user says about hydra.* wins.
    defaults = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    defaults += [f"hydra.sweep.dir=runs/{verb}/${{now:%Y-%m-%d_%H-%M-%S}}"]
    flags, overrides = _split(arguments)
    if not {"-m", "--multirun"} & set(flags):
        defaults += ["hydra/hydra_logging=none"]
    job = functools.partial(run_job, verb)
    functools.update_wrapper(job, run_job)  # Hydra reads the file and name of the function
    with _process(["dforce", *flags, *defaults, *overrides], HYDRA_FULL_ERROR="1"):
        try:
            hydra_main(version_base="1.3", config_path="pkg://dforce.configs", config_name=verb)(job)()
        except SystemExit as end:  # argparse inside Hydra, or run_job
            return end.code if isinstance(end.code, int) else 0
    return 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's own flags with their values (`-m`, `--cfg job`), and the overrides: argparse wants each in one piece."""
    flags: list[str] = []
    overrides: list[str] = []
    for before, word in zip(["", *arguments], arguments, strict=False):
        value_of_flag = before.startswith("-") and "=" not in before + word and not word.startswith("~")
        (flags if word.startswith("-") or value_of_flag else overrides).append(word)
    return flags, overrides


@contextlib.contextmanager
def _process(argv: list[str], **environ: str) -> Iterator[None]:
    """Hydra reads sys.argv and the environment; both are as they were afterwards."""
    before = sys.argv, {key: os.environ.get(key) for key in environ}
    sys.argv = argv
    os.environ.update(environ)
    try:
        yield
    finally:
        sys.argv = before[0]
        for key, value in before[1].items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)


def run_job(verb: str, cfg: Any) -> None:
    """One job: checks every node of the configuration, then calls the verb inside a run folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    try:
        _run_verb(verb, cfg, hydra, hydra.runtime.output_dir if sweep else None)
    except Exception as error:
        if sweep:  # the launcher has to know; it names the job
            raise
        raise SystemExit(_report(error)) from None


def _run_verb(verb: str, cfg: Any, hydra: Any, place: str | None) -> None:
    from dforce.config import check
    from dforce.run import RunFolder

    trust = cfg.get("trust")
    if trust is not None:
        sys.path.append(os.getcwd())  # a console script does not look there, and the package is likely one's own
    check(cfg, trust=trust, files=_sources(hydra))
    module = importlib.import_module(f"dforce.verbs.{verb}")
    if not getattr(module, "FOLDER", True):
        module.run(cfg, None)
        return
    out = place or cfg.get("out")
    with RunFolder(verb, cfg, out=out, resume=bool(cfg.get("resume"))) as folder:
        module.run(cfg, folder)
        if folder.writes:
            print(f"run folder: {folder.path}")


def _sources(hydra: Any) -> list[Path]:
    """The YAML files that the configuration was composed from, those of the user's --config-dir first."""
    names = [hydra.job.config_name, *(f"{group}/{choice}" for group, choice in hydra.runtime.choices.items())]
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    folders.append(Path(str(files("dforce.configs"))))
    return [path for folder in folders for name in names if (path := folder / f"{name}.yaml").is_file()]


def _report(error: BaseException) -> int:
    """One message for a mistake of the user's, a traceback for ours."""
    if os.environ.get("DFORCE_TRACEBACK") == "1":
        traceback.print_exception(error)
        return USER_ERROR if _users(error) else FAILURE
    if not _users(error):
        traceback.print_exception(error)
        return _complain("this is not a mistake of yours; please report it with the lines above", FAILURE)
    if isinstance(error, ModuleNotFoundError):
        return _complain(f"{error}; pip install 'dforce[all]' brings all that the verbs use")
    return _complain(f"{error}\n(DFORCE_TRACEBACK=1 shows where it was raised)")


def _users(error: BaseException) -> bool:
    """Bad values, files and overrides are the user's; a missing module is, unless it is one of dforce's own."""
    if isinstance(error, ModuleNotFoundError):
        return not (error.name or "").startswith("dforce")
    hydras = type(error).__module__.split(".")[0] in ("hydra", "omegaconf")
    return hydras and not isinstance(error, AttributeError) or isinstance(error, (ValueError, OSError))


def _unknown_key(key: str, verb: str, arguments: list[str]) -> str:
    """The nearest right key of the verb's composed configuration, and the file that defines it."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    from dforce.config import nearest

    folder = Path(str(files("dforce.configs")))
    choices = [word for word in arguments if "=" in word and (folder / word.split("=")[0]).is_dir()]
    with initialize_config_module("dforce.configs", version_base="1.3"):
        composed = compose(verb, choices, return_hydra_config=True)
    chosen = composed.hydra.runtime.choices
    cfg: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, [str(k) for k in composed if k != "hydra"]))
    key = key.split("@")[0]
    head, _, last = key.rpartition(".")
    parent = cfg
    for part in head.split(".") if head else []:
        parent = parent.get(part) if isinstance(parent, dict) else None
    file = folder / (f"{head}/{chosen[head]}.yaml" if head in chosen else f"{verb}.yaml")
    near = nearest(last, parent) if isinstance(parent, dict) else nearest(key, _dotted(cfg))
    return f"dforce {verb} has no key {key!r}{near} ({file}; to add a new key, +{key}=...)"


def _dotted(cfg: Any, where: str = "") -> list[str]:
    if not isinstance(cfg, dict):
        return [where]
    return [name for key, value in cfg.items() for name in _dotted(value, f"{where}.{key}".lstrip("."))]


def _complain(message: str, code: int = USER_ERROR) -> int:
    print(f"dforce: {message}", file=sys.stderr)
    return code
