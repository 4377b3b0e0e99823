"""The YAML files of planning suites: which one ships for a task, and what it says once its base is merged in."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from dforce.config import bounded_yaml, nearest

FOLDER = Path(str(files("dforce.configs"))) / "suites"


def shipped_suite(task: str, size: str) -> Path:
    """configs/suites/<task>-<size>.yaml, or ValueError; for a maze of one's own that of medium, as long."""
    known = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    name = "maze2d-medium" if task.startswith("maze2d-custom") else task
    if f"{name}-{size}" not in known:
        raise ValueError(f"no configuration for task={name} size={size}{nearest(f'{name}-{size}', known)}; or give "
                         "one of your own, suite=FILE")
    return FOLDER / f"{name}-{size}.yaml"


def changed_suite(file: Path, change: Mapping[str, Any]) -> dict[str, Any]:
    """The text of a suite, merged over the one that its key `base` names (a shipped one or a file beside it), changed
    and resolved."""
    merged: Any = OmegaConf.to_container(OmegaConf.merge(_with_base(file), dict(change)), resolve=True)
    return merged


def _with_base(file: Path) -> Any:
    if not file.is_file():
        raise ValueError(f"{file} is no file; give a YAML in the shape of those in {FOLDER}")
    text = yaml.safe_load(bounded_yaml(file)) or {}
    base = text.pop("base", None)
    if base is None:
        return OmegaConf.create(text)
    beside = file.with_name(f"{base}.yaml")
    return OmegaConf.merge(_with_base(beside if beside.is_file() else FOLDER / f"{base}.yaml"), text)
