"""`dforce align`: a trained model towards a reward. What all targets share; each has a module of its own."""

from __future__ import annotations

from typing import Any

from dforce import manual
from dforce.config import nearest
from dforce.run import RunFolder

FOLDER = False  # only a target that does not exist gets here


def run(cfg: Any, folder: RunFolder | None) -> None:
    """ValueError: which targets there are. Those that exist run as dforce.verbs.align_<target>."""
    raise ValueError(f"nothing called {cfg.target!r} can be tuned{nearest(cfg.target, manual.kinds('align'))}")
