"""From the words of a command line to a call of its command: Hydra composes the configuration, and it is checked."""

import contextlib
import functools
import importlib
import os
import shlex
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from dforce.cli import manual
from dforce.cli.short import shortened
from dforce.cli.words import origins, split
from dforce.config import check, check_like


class Failed(Exception):
    """A command that ended in an error, as opposed to a configuration that could not be composed."""

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
    flags, overrides = split(name, words)
    if not {"-m", "--multirun"} & set(flags):
        defaults += ["hydra/hydra_logging=none"]
    failures: list[Exception] = []
    job = functools.partial(run_job, name, failures)
    functools.update_wrapper(job, run_job)  # Hydra reads the file and name of the function
    with _process(["dforce", *flags, *defaults, *overrides], HYDRA_FULL_ERROR="1"):
        try:
            hydra_main(version_base="1.3", config_path="pkg://dforce.configs", config_name=manual.file_of(name))(job)()
        except SystemExit as end:  # argparse inside Hydra
            return end.code if isinstance(end.code, int) else 0
    for error in failures:
        raise Failed(error) from error
    return 0


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


def run_job(name: str, failures: list[Exception], cfg: Any) -> None:
    """One job: checks every node of the configuration, then calls the command.

    An error goes into `failures`, for of one that is raised Hydra prints a line of its own; it is raised where another
    process runs the job of a sweep.
    """
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
        given = frozenset(word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words)
        plain, short = shortened(name, plain, given)
        call = Invocation(name, shlex.join(["dforce", *name.split("/"), *words]), plain, given | short,
                          hydra.runtime.output_dir if sweep else plain.get("out"))
        importlib.import_module(f"dforce.cli.commands.{name.replace('/', '_')}").run(plain, call)
    except Exception as error:
        if sweep and not hydra.launcher._target_.endswith(".BasicLauncher"):
            raise
        failures.append(error)


def _sources(hydra: Any) -> list[Path]:
    """The YAML files that the configuration was composed from, those of the user's --config-dir first."""
    names = origins(hydra.job.config_name, hydra.runtime.choices).values()
    folders = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    folders.append(Path(str(files("dforce.configs"))))
    return [path for folder in folders for name in names if (path := folder / f"{name}.yaml").is_file()]
