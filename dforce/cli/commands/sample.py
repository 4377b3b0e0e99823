"""`dforce sample`: says which kinds of sampling there are; each has a configuration and a module of its own."""

from __future__ import annotations

from typing import Any

from dforce.cli import manual
from dforce.config import nearest

FOLDER = False


def run(cfg: Any, _: None = None) -> None:
    """Raises ValueError that names the kinds."""
    kinds = manual.kinds("sample")
    if cfg.kind is None:
        raise ValueError(f"what to sample? {', '.join(f'dforce sample {kind}' for kind in kinds)}")
    raise ValueError(f"no kind {str(cfg.kind)!r} of dforce sample{nearest(str(cfg.kind), kinds)}")
