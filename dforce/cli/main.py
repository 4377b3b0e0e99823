"""The command line: `dforce <verb> [kind] [key=value ...]`, each verb a Hydra application.

A verb is a file `configs/<verb>.yaml`, whose first comment line says what it does, and a module
`dforce.cli.commands.<verb>` with `run(cfg, folder)`; a kind of a verb may have its own, configs/<verb>/<kind>.yaml and
dforce.cli.commands.<verb>_<kind>. Help is read from the YAML alone, so it comes at once: neither Hydra nor torch is
imported.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dforce import __version__
from dforce.cli import manual

USER_ERROR, FAILURE, INTERRUPTED = 2, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `dforce`. Returns the exit code: 0, 2 for a mistake of the user's (one message), 1 for one of ours."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbs = manual.verbs()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _show(manual.overview(), 0 if arguments else USER_ERROR)
    if arguments[0] == "--version":
        return _show(f"dforce {__version__}")
    verb, *rest = arguments
    if verb not in verbs:
        near = difflib.get_close_matches(verb, verbs, n=1)
        return _complain(f"no verb {verb!r}; {f'did you mean {near[0]!r}? ' if near else ''}verbs: {', '.join(verbs)}")
    verb, rest = manual.with_kind(verb, rest)
    if any(word in ("-h", "--help") for word in rest):
        return _show(manual.verb_help(verb))
    try:
        return _launch(verb, rest)
    except Exception as error:
        key = re.search(r"Could not override '([^']+)'", str(error))
        return _complain(_unknown_key(key[1], verb, rest)) if key else _report(error)
    except KeyboardInterrupt as stop:
        return _complain(str(stop) or "interrupted", INTERRUPTED)


def _selected(verb: str, arguments: list[str]) -> list[str]:
    """`data maze steps=3` -> `kind=maze steps=3`: a bare first word chooses among the kinds of a verb."""
    if arguments and re.fullmatch(r"\w[\w-]*", arguments[0]):
        if not re.search(r"^kind:", manual.text_of(verb), re.MULTILINE):
            raise ValueError(f"dforce {verb.replace('/', ' ')} takes key=value, got the bare word {arguments[0]!r}")
        return [f"kind={arguments[0]}", *arguments[1:]]
    return arguments


def _launch(verb: str, arguments: list[str]) -> int:
    """Composes the configuration and runs the verb through Hydra, whose launchers and sweepers all work."""
    from hydra import main as hydra_main

    # The run folder is ours (dforce.runs.folder), so Hydra leaves no folder and no log of its own behind. Defaults come
    # first: what the user says about hydra.* wins.
    defaults = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    defaults += [f"hydra.sweep.dir=runs/{verb}/${{now:%Y-%m-%d_%H-%M-%S}}"]
    flags, overrides = _split(_selected(verb, arguments))
    if not {"-m", "--multirun"} & set(flags):
        defaults += ["hydra/hydra_logging=none"]
    job = functools.partial(run_job, verb, shlex.join(["dforce", *verb.split("/"), *arguments]))
    functools.update_wrapper(job, run_job)  # Hydra reads the file and name of the function
    with _terminable(), _process(["dforce", *flags, *defaults, *overrides], HYDRA_FULL_ERROR="1"):
        try:
            hydra_main(version_base="1.3", config_path="pkg://dforce.configs", config_name=manual.file_of(verb))(job)()
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
    # Hydra's grammar knows no '#' outside of quotes, and a maze is full of them
    return flags, [re.sub(r"""=([^'",[{ ]*#[^'",[{ ]*)$""", r"='\1'", word) for word in overrides]


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


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, so that STATUS does not say `running` for ever. Main thread only."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_job(verb: str, command: str, cfg: Any) -> None:
    """One job: checks every node of the configuration, then calls the verb inside a run folder."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    try:
        _run_verb(verb, command, cfg, hydra, hydra.runtime.output_dir if sweep else None)
    except Exception as error:
        if sweep:  # the launcher has to know; it names the job
            raise
        raise SystemExit(_report(error)) from None


def _run_verb(verb: str, command: str, cfg: Any, hydra: Any, place: str | None) -> None:
    from dforce.config import check, check_like
    from dforce.report.html import write_index
    from dforce.runs.folder import RunFolder

    trust = cfg.get("trust")
    if trust is not None:
        sys.path.append(os.getcwd())  # a console script does not look there, and the package is likely one's own
    check(cfg, trust=trust, files=_sources(hydra))
    check_like(cfg, manual.text_of(verb))
    module = importlib.import_module(f"dforce.cli.commands.{verb.replace('/', '_')}")
    if not getattr(module, "FOLDER", True):
        module.run(cfg, None)
        return
    out = place or cfg.get("out")
    folder = RunFolder(verb, cfg, out=out, resume=bool(cfg.get("resume")), command=command)
    try:
        with folder:
            module.run(cfg, folder)
    finally:
        if folder.writes:  # after STATUS is written; a run that failed has a page too
            page = write_index(folder.path)
    if folder.writes:
        print(f"open {page}")


def _sources(hydra: Any) -> list[Path]:
    """The YAML files that the configuration was composed from, those of the user's --config-dir first."""
    names = _origins(hydra.job.config_name, hydra.runtime.choices).values()
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    folders.append(Path(str(files("dforce.configs"))))
    return [path for folder in folders for name in names if (path := folder / f"{name}.yaml").is_file()]


def _origins(verb: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Place in the configuration -> the file it comes from: {"": "demo", "train": "train", "net": "net/recurrent"}."""
    included = re.findall(r"^\s*- (\w+)@(\w+)\s*$", manual.text_of(verb), re.MULTILINE)
    groups = {key.split("@")[-1]: f"{key.split('@')[0]}/{choice}" for key, choice in choices.items()}
    return {"": manual.file_of(verb), **{place: other for other, place in included}, **groups}


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
        composed = compose(manual.file_of(verb), choices, return_hydra_config=True)
    origins = _origins(verb, composed.hydra.runtime.choices)
    cfg: Any = OmegaConf.to_container(OmegaConf.masked_copy(composed, [str(k) for k in composed if k != "hydra"]))
    key = key.split("@")[0]
    head, _, last = key.rpartition(".")
    parent = cfg
    for part in head.split(".") if head else []:
        parent = parent.get(part) if isinstance(parent, dict) else None
    place = head
    while place not in origins:
        place = place.rpartition(".")[0]
    file = folder / f"{origins[place]}.yaml"
    if isinstance(parent, dict):
        elsewhere = {name.rpartition(".")[2]: name for name in _dotted(cfg)}  # `steps` may be meant for `fit.steps`
        near = nearest(last, parent, elsewhere)
    else:
        near = nearest(key, _dotted(cfg))
    return f"dforce {verb.replace('/', ' ')} has no key {key!r}{near} ({file}; to add a new key, +{key}=...)"


def _dotted(cfg: Any, where: str = "") -> list[str]:
    if not isinstance(cfg, dict):
        return [where]
    return [name for key, value in cfg.items() for name in _dotted(value, f"{where}.{key}".lstrip("."))]


def _show(text: str, code: int = 0) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `dforce --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _complain(message: str, code: int = USER_ERROR) -> int:
    print(f"dforce: {message}", file=sys.stderr)
    return code
