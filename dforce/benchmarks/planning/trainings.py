"""Trainings as jobs of a benchmark: ordinary run folders of `dforce train`, gone on with where they were stopped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from omegaconf import OmegaConf

from dforce.benchmarks.planning.suite import ModelNode
from dforce.cli.commands.train import train
from dforce.report.html import write_index
from dforce.runs.folder import RunFolder
from dforce.runs.jobs import Job, Stopped, slug
from dforce.runs.shards import differing
from dforce.train.checkpoint import CheckpointError, find

ANYWAY = ("out", "resume", "save_every", "keep", "trust")  # change nothing about what is learnt
GROUPS = ("net", "schedule")
ALL = 10_000  # checkpoints kept


class Training(NamedTuple):
    """One network of one seed. cfg: as `dforce train` has it, `out` its run folder; usual: the defaults below it."""

    name: str
    cfg: Any
    usual: dict[str, Any]

    @property
    def out(self) -> Path:
        return Path(self.cfg.out)

    @property
    def settings(self) -> dict[str, Any]:
        """What decides what is learnt: as the run folder has it if it counts, else as it is wanted now."""
        file = self.out / "config.yaml"
        wanted = settings_of(plain(self.cfg))
        if not file.is_file() or self.found()[0] == "other":
            return wanted
        return settings_of(yaml.safe_load(file.read_text(encoding="utf-8")))

    def found(self) -> tuple[str, str]:
        """"none", "begun", "done", or "other" and why the folder that is there does not count."""
        file = self.out / "config.yaml"
        if not file.is_file():
            taken = self.out.is_dir() and any(self.out.iterdir())
            return ("other", "holds something else") if taken else ("none", "")
        wanted = settings_of(plain(self.cfg))
        before = settings_of(yaml.safe_load(file.read_text(encoding="utf-8")))
        changed = differing(_with_newer_keys(before, wanted, self.usual), wanted)
        if changed:
            return "other", f"was trained with other settings ({'; '.join(changed[:3])})"
        if not any((self.out / "checkpoints").glob("step_*")):
            return "begun", ""
        try:
            find(self.out)
        except CheckpointError as error:
            return "other", f"has no whole checkpoint ({error})"
        status = self.out / "STATUS"
        finished = status.is_file() and status.read_text(encoding="utf-8").strip() == "done"
        return ("done" if finished else "begun"), ""

    def unit(self, *, late: Callable[[], bool], tell: Callable[[str], None] = print) -> Job:
        return Job(f"train {self.name}", (), partial(self._done, tell), partial(self._work, late))

    def _done(self, tell: Callable[[str], None]) -> bool:
        state, why = self.found()
        if why:
            tell(f"{self.out} {why}: it is trained anew")
        return state == "done"

    def _work(self, late: Callable[[], bool]) -> None:
        state, _ = self.found()
        if state == "other":
            _move_aside(self.out)
        self.cfg.resume = str(self.out) if state == "begun" else None
        folder = RunFolder("train", self.cfg, out=self.out, resume=True)
        try:
            with folder:
                train(self.cfg, folder, late=late)
        except KeyboardInterrupt:
            if late():
                raise Stopped(f"{self.out} is gone on with by the next run") from None
            raise
        finally:
            write_index(folder.path)


def training(model: ModelNode, seed: int, *, data: str, folder: Path, trust: str | None = None,
             device: str | None = None, every: bool = False) -> Training:
    """The training of a network into `folder`/<name>-<seed>. every: all its checkpoints stay."""
    changes = {**model.overrides, "data": data, "seed": seed, "trust": trust,
               "out": str(folder / f"{slug(model.name)}-{seed}")} | ({"fit.device": device} if device else {})
    cfg = compose_training({**changes, "keep": ALL} if every else changes)
    usual = compose_training({key: value for key, value in changes.items() if key in GROUPS})
    return Training(f"{model.name}-{seed}", cfg, plain(usual))


def compose_training(changes: dict[str, Any]) -> Any:
    """configs/train.yaml with `changes`: dotted keys, choices of groups (net: transformer), and ~keys to delete."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    overrides = [key if key.startswith("~") else f"{key}={_value(value)}" for key, value in changes.items()]
    if GlobalHydra.instance().is_initialized():  # inside a verb: the user's --config-dir counts
        return compose("train", overrides)
    with initialize_config_module("dforce.configs", version_base="1.3"):
        return compose("train", overrides)


def _value(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)


def plain(cfg: Any) -> dict[str, Any]:
    """A configuration as plain dictionaries."""
    return dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]


def settings_of(config: Any) -> dict[str, Any]:
    """What of a configuration decides what is learnt; another device is a matter of rounding."""
    kept = {key: value for key, value in config.items() if key not in ANYWAY}
    return {**kept, "fit": {key: value for key, value in kept["fit"].items() if key != "device"}}


def _with_newer_keys(before: Any, now: Any, usual: Any) -> Any:
    """Old settings with the keys that dforce has had since, where these are at their defaults: they change nothing."""
    if not (isinstance(before, dict) and isinstance(now, dict) and isinstance(usual, dict)):
        return before
    newer = {key: value for key, value in now.items() if key not in before and key in usual and usual[key] == value}
    return {**{key: _with_newer_keys(value, now.get(key), usual.get(key)) for key, value in before.items()}, **newer}


def _move_aside(out: Path) -> None:
    number = 1
    while (aside := out.with_name(f"{out.name}.old-{number}")).exists():
        number += 1
    out.rename(aside)
