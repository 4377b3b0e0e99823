"""Trainings as jobs of a benchmark: ordinary run folders of `dforce train`, continued where they were stopped."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dforce.benchmarks.planning.suite import ModelNode
from dforce.config import bounded_yaml, present
from dforce.report.html import write_index
from dforce.runs.folder import Invocation, RunFolder, nothing_saved
from dforce.runs.jobs import Job, Stopped, run_is_done, slug
from dforce.runs.shards import differing
from dforce.runs.training_run import follow
from dforce.runs.trajectory_training import TrajectoryTraining
from dforce.train.checkpoint import CheckpointError, find, step_folders

UNLEARNT = ("out", "resume", "save_every", "keep", "trust")  # settings that change nothing about what is learnt
GROUPS = ("net", "schedule")
ALL = 10_000  # checkpoints kept

Compose = Callable[[Mapping[str, Any]], tuple[TrajectoryTraining, dict[str, Any]]]
"""compose(changes) -> the training that `dforce train` with these changes would be, and its configuration.

changes: dotted keys, choices of config groups (net: transformer), and ~keys to delete.
"""


@dataclass(frozen=True)
class ModelTraining:
    """One network of one seed."""

    name: str
    training: TrajectoryTraining
    call: Invocation       # its record, with the configuration, and its run folder as `out`
    usual: dict[str, Any]  # the defaults below that configuration

    @property
    def out(self) -> Path:
        return Path(str(self.call.out))

    @property
    def wanted(self) -> dict[str, Any]:
        """The settings that decide what is learnt."""
        return learnt_settings(self.call.config)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decided what the run folder holds, where it counts; else those wanted."""
        if not (self.out / "config.yaml").is_file() or self.state()[0] == "other":
            return self.wanted
        return self._recorded()

    def state(self) -> tuple[str, str]:
        """("none" | "begun" | "done", ""), or ("other", why the run folder that is there does not count)."""
        if not (self.out / "config.yaml").is_file():
            taken = self.out.exists() and not nothing_saved(self.out)
            return ("other", "holds something else") if taken else ("none", "")
        changed = differing(_with_newer_keys(self._recorded(), self.wanted, self.usual), self.wanted)
        if changed:
            return "other", f"was trained with other settings ({'; '.join(changed[:3])})"
        if not step_folders(self.out / "checkpoints"):
            return "begun", ""
        try:
            find(self.out)
        except CheckpointError as error:
            return "other", f"has no whole checkpoint ({error})"
        return ("done" if run_is_done(self.out) else "begun"), ""

    def job(self, *, late: Callable[[], bool], tell: Callable[[str], None]) -> Job:
        """late: once true, the training stops at a checkpoint. tell: receives messages."""
        return Job(f"train {self.name}", (), partial(self._done, tell), partial(self._work, late))

    def _recorded(self) -> dict[str, Any]:
        """Settings of the run folder; constructors that have moved since it was written under their present names."""
        return learnt_settings(present(yaml.safe_load(bounded_yaml(self.out / "config.yaml"))))

    def _done(self, tell: Callable[[str], None]) -> bool:
        state, why = self.state()
        if why:
            tell(f"{self.out} {why}: it is trained anew")
        return state == "done"

    def _work(self, late: Callable[[], bool]) -> None:
        state, _ = self.state()
        if state == "other":
            _move_aside(self.out)
        resume = str(self.out) if state == "begun" else None
        training, config = replace(self.training, resume=resume), {**self.call.config, "resume": resume}
        folder = RunFolder("train", config, out=self.out, resume=True, command=self.call.command)
        try:
            with folder:
                prepared = training.prepare()
                training.finish(prepared, folder, follow(training, prepared, folder, config, late))
        except KeyboardInterrupt:
            if late():
                raise Stopped(f"{self.out} is continued by the next run") from None
            raise
        finally:
            write_index(folder.path)


def model_training(model: ModelNode, seed: int, compose: Compose, *, command: str, data: str, folder: Path,
                   device: str | None = None, keep_all: bool = False) -> ModelTraining:
    """The training of a network into `folder`/<name>-<seed>; keep_all: all its checkpoints stay."""
    out = str(folder / f"{slug(model.name)}-{seed}")
    changes = {**model.overrides, "data": data, "seed": seed, "out": out, **({"fit.device": device} if device else {}),
               **({"keep": ALL} if keep_all else {})}
    training, config = compose(changes)
    _, usual = compose({key: value for key, value in changes.items() if key in GROUPS})
    call = Invocation("train", command, config, frozenset(changes), out)
    return ModelTraining(f"{model.name}-{seed}", training, call, usual)


def learnt_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that decides what is learnt; another device is a matter of rounding."""
    kept = {key: value for key, value in config.items() if key not in UNLEARNT}
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
