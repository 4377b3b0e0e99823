"""Trainings as units of a benchmark: ordinary run folders of `dforce train`, gone on with where they were stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from dforce.checkpoint import CheckpointError, find
from dforce.planning.shards import differing
from dforce.planning.suite import ModelNode
from dforce.planning.units import Stopped, Unit, slug
from dforce.report.html import write_index
from dforce.run import RunFolder
from dforce.verbs.train import train

ANYWAY = ("out", "resume", "save_every", "keep", "trust")  # change nothing about what is learnt


def training_unit(model: ModelNode, seed: int, *, data: str, folder: Path, late: Callable[[], bool],
                  trust: str | None = None, tell: Callable[[str], None] = print) -> tuple[Unit, dict[str, Any]]:
    """The unit that trains one network into `folder`/<name>-<seed>, and the settings that decide what it learns."""
    out = folder / f"{slug(model.name)}-{seed}"
    cfg = compose_training({**model.overrides, "data": data, "seed": seed, "trust": trust, "out": str(out)})
    settings = _settings(OmegaConf.to_container(cfg, resolve=True))

    def done() -> bool:
        state, why = _found(out, settings)
        if why:
            tell(f"{out} {why}: it is trained anew")
        return state == "done"

    def work() -> None:
        state, _ = _found(out, settings)
        if state == "other":
            _move_aside(out)
        elif state == "begun":
            cfg.resume = str(out)
        _train(cfg, out, late)

    return Unit(f"train {model.name}-{seed}", (), done, work), settings


def compose_training(changes: dict[str, Any]) -> Any:
    """configs/train.yaml with `changes`, dotted keys and choices of groups (net: transformer) among them."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    overrides = [f"{key}={_value(value)}" for key, value in changes.items()]
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


def _settings(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ANYWAY}


def _found(out: Path, settings: dict[str, Any]) -> tuple[str, str]:
    """"none", "begun", "done", or "other" and why the folder that is there does not count."""
    file = out / "config.yaml"
    if not file.is_file():
        return ("other", "holds something else") if out.is_dir() and any(out.iterdir()) else ("none", "")
    changed = differing(_settings(yaml.safe_load(file.read_text(encoding="utf-8"))), settings)
    if changed:
        return "other", f"was trained with other settings ({'; '.join(changed[:3])})"
    if not any((out / "checkpoints").glob("step_*")):
        return "begun", ""
    try:
        find(out)
    except CheckpointError as error:
        return "other", f"has no whole checkpoint ({error})"
    status = out / "STATUS"
    finished = status.is_file() and status.read_text(encoding="utf-8").strip() == "done"
    return ("done" if finished else "begun"), ""


def _move_aside(out: Path) -> None:
    number = 1
    while (aside := out.with_name(f"{out.name}.old-{number}")).exists():
        number += 1
    out.rename(aside)


def _train(cfg: Any, out: Path, late: Callable[[], bool]) -> None:
    folder = RunFolder("train", cfg, out=out, resume=True)
    try:
        with folder:
            train(cfg, folder, late=late)
    except KeyboardInterrupt:
        if late():
            raise Stopped(f"{out} is gone on with by the next run") from None
        raise
    finally:
        write_index(folder.path)
