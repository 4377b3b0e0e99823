"""From the words of a command line to a call of its command: Hydra composes the configuration, and it is checked."""

import contextlib
import functools
import importlib
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from dforce.cli import manual
from dforce.config import check, check_like, nearest, option, options


class Failed(Exception):
    """A command that ended in an error; carried past Hydra, which would print it in its own way."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


def launch(name: str, words: list[str]) -> int:
    """Composes the configuration and runs the command through Hydra; returns the exit code, or raises `Failed`."""
    from hydra import main as hydra_main

    # The run folder is ours (dforce.runs.folder), so Hydra leaves no folder and no log of its own behind. Defaults come
    # first: what the user says about hydra.* wins.
    defaults = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]
    defaults += [f"hydra.sweep.dir=runs/{name}/${{now:%Y-%m-%d_%H-%M-%S}}"]
    flags, overrides = _split(words)
    if not {"-m", "--multirun"} & set(flags):
        defaults += ["hydra/hydra_logging=none"]
    job = functools.partial(run_job, name)
    functools.update_wrapper(job, run_job)  # Hydra reads the file and name of the function
    with _terminable(), _process(["dforce", *flags, *defaults, *overrides], HYDRA_FULL_ERROR="1"):
        try:
            hydra_main(version_base="1.3", config_path="pkg://dforce.configs", config_name=manual.file_of(name))(job)()
        except SystemExit as end:  # argparse inside Hydra
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
    """Sets sys.argv and the environment, which Hydra reads; afterwards both are as before."""
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


def run_job(name: str, cfg: Any) -> None:
    """One job: checks every node of the configuration, then calls the command."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from dforce.runs.folder import Invocation

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    try:
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        if plain.get("trust") is not None:
            sys.path.append(os.getcwd())  # a console script does not look there, and the package is likely one's own
        check(plain, trust=plain.get("trust"), files=_sources(hydra))
        check_like(plain, manual.text_of(name))
        words = list(hydra.overrides.task)
        call = Invocation(name, shlex.join(["dforce", *name.split("/"), *words]), plain,
                          frozenset(word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words),
                          hydra.runtime.output_dir if sweep else plain.get("out"))
        importlib.import_module(f"dforce.cli.commands.{name.replace('/', '_')}").run(plain, call)
    except Exception as error:
        if sweep:  # the launcher has to know; it names the job
            raise
        raise Failed(error) from error


def _sources(hydra: Any) -> list[Path]:
    """The YAML files that the configuration was composed from, those of the user's --config-dir first."""
    names = _origins(hydra.job.config_name, hydra.runtime.choices).values()
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    folders.append(Path(str(files("dforce.configs"))))
    return [path for folder in folders for name in names if (path := folder / f"{name}.yaml").is_file()]


def _origins(file: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Place in the configuration -> the file it comes from: {"": "verbs/demo/demo", "net": "net/recurrent"}."""
    text = (files("dforce.configs") / f"{file}.yaml").read_text("utf-8")
    included = re.findall(r"^\s*- /(verbs/\w+/\w+)@(\w+)\s*$", text, re.MULTILINE)
    groups = {key.split("@")[-1]: f"{key.split('@')[0]}/{choice}" for key, choice in choices.items()}
    return {"": file, **{place: other for other, place in included}, **groups}


def unknown_key(key: str, name: str, words: list[str]) -> str:
    """The nearest right key of the verb's composed configuration, and the file that defines it."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    folder = Path(str(files("dforce.configs")))
    choices = [word for word in words if "=" in word and (folder / word.split("=")[0]).is_dir()]
    with initialize_config_module("dforce.configs", version_base="1.3"):
        composed = compose(manual.file_of(name), choices, return_hydra_config=True)
    origins = _origins(manual.file_of(name), composed.hydra.runtime.choices)
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
    elsewhere = {dotted.rpartition(".")[2]: dotted for dotted in _dotted(cfg)}  # `steps` for `fit.steps`
    if isinstance(parent, dict):
        near = f"; did you mean {elsewhere[key]!r}?" if key in elsewhere else (
            _of_other_options(last, composed.hydra.runtime.choices) or nearest(last, parent, elsewhere))
    else:
        near = nearest(key, _dotted(cfg))
    return f"dforce {name.replace('/', ' ')} has no key {key!r}{near} ({file}; to add a new key, +{key}=...)"


def _of_other_options(key: str, choices: Mapping[str, str]) -> str:
    """`; algorithm.beta is a key of algorithm=rwr, ...` where other options of a group in use have the key."""
    for choice in (name for name in choices if "/" not in name and not name.startswith("hydra")):
        group, _, place = choice.partition("@")  # net@train.net: one of configs/net, at train.net
        having = [name for name in options(group) if key in option(group, name)]
        if having:
            return f"; {place or group}.{key} is a key of {', '.join(f'{choice}={name}' for name in having)}"
    return ""


def unknown_option(group: str, name: str) -> str:
    """The nearest right option of a config group."""
    return f"no {group} {name!r}{nearest(name, options(group))}"


def _dotted(cfg: Any, where: str = "") -> list[str]:
    if not isinstance(cfg, dict):
        return [where]
    return [name for key, value in cfg.items() for name in _dotted(value, f"{where}.{key}".lstrip("."))]
