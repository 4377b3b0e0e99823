"""The runs of `dforce benchmark align`: which there are, where their results lie, and what each follows from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dforce.benchmarks.align.methods import GRADIENT, Bed, make_bed
from dforce.config import nearest
from dforce.runs.jobs import slug
from dforce.runs.shards import Shard, read_shard

BASE = "base"  # the model before, judged like a method


class Part(NamedTuple):
    """One run of a method. trial: its number, on the tuning seed; None for a run that is reported. classes: how many
    it is tuned on, None for all."""

    seed: int
    trial: int | None = None
    classes: int | None = None

    @property
    def name(self) -> str:
        if self.trial is not None:
            return f"trial {self.trial}"
        return f"seed {self.seed}" if self.classes is None else f"on {self.classes}, seed {self.seed}"


@dataclass(frozen=True)
class Bench:
    """What is asked for, and where its results are. asked: the configuration, plain."""

    asked: dict[str, Any]
    folder: Path

    @property
    def judge(self) -> Path:
        return self.folder / "models" / "judge"

    @property
    def weak(self) -> Path:
        return self.folder / "models" / "weak"

    def bed(self, task: str) -> Bed:
        return _bed(task, self.weak, self.judge, self.asked["steps"], self.asked["spacing"])

    def methods(self, task: str) -> dict[str, dict[str, Any]]:
        """Those that the task has: a search by gradient wants a reward that has one."""
        named = self.asked["methods"]
        unknown = [name for name in self.asked["only"] or [] if name not in named]
        if unknown:
            raise ValueError(f"no method {unknown[0]!r}{nearest(unknown[0], named)}")
        return {name: node for name, node in named.items() if (not self.asked["only"] or name in self.asked["only"])
                and (task == "class" or node.get("search") not in GRADIENT)}

    def parts(self, method: str) -> list[Part]:
        """The runs of a method, in the order in which they are done."""
        seeds = range(self.asked["seeds"])
        if method == BASE:
            return [Part(self.asked["tune_seed"]), *(Part(seed) for seed in seeds)]
        trials = [Part(self.asked["tune_seed"], trial=i) for i in range(len(self.trials(method)))]
        several = self.asked["spread"] if method in self.asked["spread_methods"] else []
        return [*(trials if len(trials) > 1 else []), *(Part(seed) for seed in seeds),
                *(Part(seed, classes=count) for count in several for seed in seeds)]

    def trials(self, method: str) -> list[dict[str, Any]]:
        return self.asked["methods"][method].get("trials") or [{}]

    def read(self, task: str, method: str, part: Part) -> Shard | str:
        """The result, or why there is none."""
        try:
            return read_shard(self.file(task, method, part), self.identity(task, method, part))
        except LookupError as missing:
            return str(missing)

    def file(self, task: str, method: str, part: Part) -> Path:
        return self.folder / "shards" / task / slug(method) / f"{slug(part.name)}.jsonl"

    def identity(self, task: str, method: str, part: Part) -> dict[str, Any]:
        """All that the result follows from. LookupError while the trials that it is chosen by are not all there."""
        own = {key: self.asked[key] for key in ("steps", "spacing", "judge_steps")}
        if task == "class":
            own["weak_steps"] = self.asked["weak_steps"]
        about = {"task": task, **own, "seed": part.seed, "classes": part.classes, "count": self.count(method, part)}
        if method == BASE:
            return about
        node = {key: value for key, value in self.asked["methods"][method].items() if key != "trials"}
        if "algorithm" in node:
            about |= self.budget(part)
        return {**about, "node": node, "setting": self.setting(task, method, part)}

    def budget(self, part: Part) -> dict[str, int]:
        """Of an algorithm. Trials are judged at their end alone."""
        return {"epochs": self.asked["epochs"], "samples": self.asked["samples"],
                "points": self.asked["points"] if part.trial is None else 1}

    def count(self, method: str, part: Part) -> int:
        many = self.asked["searched" if "search" in self.asked["methods"].get(method, {}) else "judged"]
        return many if part.trial is None else many // 2

    def setting(self, task: str, method: str, part: Part) -> dict[str, Any]:
        """Of a trial its own; else that of the best trial."""
        trials = self.trials(method)
        if part.trial is not None or len(trials) == 1:
            return trials[part.trial or 0]
        return trials[self.best(task, method)]

    def best(self, task: str, method: str) -> int:
        """The highest reward of the trials that keep accuracy and diversity; where none does, the least damage."""
        base = self.read(task, BASE, Part(self.asked["tune_seed"]))
        found = [self.read(task, method, part) for part in self.parts(method) if part.trial is not None]
        if isinstance(base, str) or any(isinstance(one, str) for one in found):
            raise LookupError(f"the trials of {method} are not all there")
        before = base.header["summary"]
        scores = []
        for one in found:
            now = one.header["summary"]  # type: ignore[union-attr]
            lost = max(0.0, min(self.asked["accuracy"], before["accuracy"]) - now["accuracy"])
            lost += max(0.0, self.asked["diversity"] - now["diversity"] / before["diversity"])
            scores.append((-lost, now["reward"]))
        return max(range(len(scores)), key=scores.__getitem__)


@cache
def _bed(task: str, weak: Path, judge: Path, steps: int, spacing: str) -> Bed:
    return make_bed(task, weak=weak, judge=judge, steps=steps, spacing=spacing)
