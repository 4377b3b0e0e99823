"""`dforce benchmark`: how fast this installation is on this machine, against the official structure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dforce.benchmarks.speed import data, guidance, planning, sampling, train_step
from dforce.benchmarks.speed.harness import Measured, join
from dforce.benchmarks.speed.sizes import QUICK, Sizes
from dforce.config import nearest
from dforce.report.html import write_index
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder
from dforce.runs.progress import progress
from dforce.train.precision import choose

KINDS = ("speed",)
PARTS: dict[str, Callable[[Sizes], list[Callable[[], Measured]]]] = {
    "train_step": train_step.races, "sampling": sampling.races, "guidance": guidance.races,
    "planning": planning.races, "data": data.races}


def run(cfg: Any, folder: RunFolder) -> None:
    """Runs the parts; prints their tables, and writes results.json and episodes.jsonl (one line a timed run)."""
    if cfg.kind not in KINDS:
        raise ValueError(f"no benchmark of kind {cfg.kind!r}; kinds: {', '.join(KINDS)}")
    for part in cfg.parts:
        if part not in PARTS:
            raise ValueError(f"no part {part!r} of the benchmark{nearest(part, PARTS)}")
    sizes = (QUICK if cfg.quick else Sizes())._replace(device=_device(cfg.device))
    fast = choose("auto", sizes.device)
    if fast.name == "fp32" and not cfg.quick:
        print(f"bf16 is left out: {fast.reason}")
        sizes = sizes._replace(bf16=False)
    if cfg.rounds is not None:
        sizes = sizes._replace(rounds=cfg.rounds)
    found: list[Measured] = []
    for race in progress([race for part in cfg.parts for race in PARTS[part](sizes)], "benchmark"):
        found.append(race())
        folder.episodes(found[-1].runs)
        folder.results(join(found).rows)  # after each: a long run that is stopped keeps what it has
    if folder.writes:
        print(markdown_table(join(found).rows), flush=True)
        write_index(folder.path)


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
