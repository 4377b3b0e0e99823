"""What `dforce align planner` measured, as rows, tables and pictures: of all that is in its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from dforce.align.algorithms import ALGORITHMS
from dforce.config import build
from dforce.planning.evaluation import difference
from dforce.planning.pictures import fans, on_paper, reach
from dforce.planning.scores import ScoreReport, blocked_mask, bootstrap_interval
from dforce.planning.tuning import policy
from dforce.report.plots.maze import plan_grid
from dforce.report.plots.tuning import tuning_curves
from dforce.report.rows import write_episodes
from dforce.report.table import markdown_table
from dforce.runs.claims import locked
from dforce.runs.folder import RunFolder, write_atomic

Row = dict[str, Any]

BASE, SAMPLED, GUIDED = "base", "policy", "guided"
SHOWN = ("return", "success")
DIFFERENCES = {"return": "steps at goal, paired", "success": "fraction, paired",
               "score": "D4RL-normalised x100, paired"}
CAPTIONS = {
    "before_after.png": "Eight plans from each of some held-out starts: above the base's, below the tuned one's, in "
                        "the same noise.",
    "curves.png": "Return, success and KL to the base of plans from starts of their own, as tuning goes on.",
}


def place(root: Path, algorithm: str, seed: int) -> Path:
    """The folder of one tuning, which `dforce plan checkpoint=` takes."""
    return root / "tuned" / f"{algorithm}-{seed}"


def report(cfg: Any, folder: RunFolder, algorithms: list[str]) -> None:
    """results.json, episodes.jsonl, the table and the pictures of all that is there; nothing where nothing is."""
    played = read_played(folder.path / "played")
    if not played:
        return
    with locked(folder.path / "locks" / "report.lock", wait=True):
        reports = joined(played)
        task = next(iter(played.values()))["task"]
        rows = [row for (name, _), (one, variant) in reports.items()
                for row in one.rows(task=task, method=name, variant=variant)]
        rows += differences(task, reports) + divergences(task, played)
        curves = read_curves(folder.path / "tuned", algorithms)
        folder.results(rows, tuning_cpu_seconds=round(sum(lines[-1]["cpu_seconds"] for lines in curves.values()), 1))
        lines = [line for (name, _), (one, variant) in reports.items()
                 for line in one.episodes(task=task, method=name, variant=variant)]
        write_episodes(folder.path / "episodes.jsonl", lines)
        draw(cfg, folder, curves, place(folder.path, algorithms[0], cfg.seeds[0]))
    own = [row for row in rows if row["task"] == task and row["metric"] in SHOWN]
    print(markdown_table(own, metrics=SHOWN))
    print(markdown_table([row for row in rows if row["metric"] == "return_difference"]))


def read_played(place_: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """(name, seed) -> what played/<name>-<seed>.json holds, base first."""
    files = sorted(place_.glob("*.json"), key=lambda file: (not file.stem.startswith(f"{BASE}-"), file.stem))
    return {(file.stem.rpartition("-")[0], int(file.stem.rpartition("-")[2])): json.loads(file.read_text("utf-8"))
            for file in files}


def joined(played: dict[tuple[str, int], dict[str, Any]]) -> dict[tuple[str, str], tuple[ScoreReport, dict[str, Any]]]:
    """(method, how it samples) -> the episodes of all its seeds, and its variant."""
    parts: dict[tuple[str, str], list[tuple[int, dict[str, Any], list[bool]]]] = {}
    for (_, seed), one in played.items():
        for method in one["methods"]:
            key = (method["method"], method["variant"].get("sampling", ""))
            parts.setdefault(key, []).append((seed, method, one["blocked"]))
    found = {}
    for key, seeds in parts.items():
        seeds = sorted(seeds, key=lambda part: part[0])
        values = {metric: np.concatenate([np.asarray(part[1]["values"][metric]) for part in seeds])
                  for metric in seeds[0][1]["values"]}
        number = np.repeat([part[0] for part in seeds], [len(part[2]) for part in seeds])
        blocked = np.concatenate([np.asarray(part[2], dtype=bool) for part in seeds])
        found[key] = ScoreReport(values, number, blocked), seeds[0][1]["variant"]
    return found


def differences(task: str, reports: dict[tuple[str, str], tuple[ScoreReport, dict[str, Any]]]) -> list[Row]:
    """Every tuned network - the base, guided or not, and - the base's rivals, from the same starts."""
    rows = []
    for name, sampling in [key for key in reports if key[0] in ALGORITHMS]:
        for other, how in [key for key in reports if key[0] not in ALGORITHMS and key[1]]:
            if sampling == GUIDED and (other, how) != (BASE, GUIDED):
                continue  # guidance is compared with guidance
            pair = _shared(reports[name, sampling][0], reports[other, how][0])
            label = " - ".join(one + (f" {GUIDED}" if way == GUIDED else "") for one, way in
                               ((name, sampling), (other, how)))
            for metric, unit in DIFFERENCES.items():
                if pair is not None and metric in pair[0].values:
                    rows += [{**row, "unit": unit} for row in difference(task, label, *pair, metric=metric)]
    return rows


def _shared(one: ScoreReport, base: ScoreReport) -> tuple[ScoreReport, ScoreReport] | None:
    """Both, the base for the seeds alone that the other has; None where that does not make them alike."""
    kept = np.isin(base.seed, one.seed)
    base = ScoreReport({key: value[kept] for key, value in base.values.items()}, base.seed[kept], base.blocked[kept])
    return (one, base) if np.array_equal(base.seed, one.seed) else None


def divergences(task: str, played: dict[tuple[str, int], dict[str, Any]]) -> list[Row]:
    """KL of what was tuned to the base, of whole plans."""
    rows = []
    for name in dict.fromkeys(name for name, _ in played if name != BASE):
        parts = [(seed, one["kl"]) for (other, seed), one in played.items() if other == name]
        values = np.concatenate([kl for _, kl in parts])
        seed = np.repeat([seed for seed, _ in parts], [len(kl) for _, kl in parts])
        rows.append({"task": f"{task}, divergence", "method": name, "variant": {"sampling": SAMPLED},
                     "metric": "kl", **bootstrap_interval(values, seed, rng=np.random.default_rng(0))._asdict(),
                     "seeds": len(parts), "unit": "nats of a plan, to the base", "higher_is_better": False})
    return rows


def read_curves(tuned: Path, algorithms: list[str]) -> dict[str, list[dict[str, Any]]]:
    """"<algorithm>-<seed>" -> the lines of its curve.jsonl, of the algorithms asked for."""
    return {file.parent.name: [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            for file in sorted(tuned.glob("*/curve.jsonl")) if file.parent.name.rpartition("-")[0] in algorithms}


def draw(cfg: Any, folder: RunFolder, curves: dict[str, list[dict[str, Any]]], tuned: Path) -> None:
    """curves.png and, once the tuning in `tuned` is done, before_after.png; its checkpoint becomes the run's."""
    if curves:
        tuning_curves(curves).savefig(folder.media / "curves.png")
    if (tuned / "done").is_file():
        if not any(folder.checkpoints.glob("step_*")):
            for step in (tuned / "checkpoints").glob("step_*"):
                shutil.copytree(step, folder.checkpoints / f".{step.name}")
                (folder.checkpoints / f".{step.name}").rename(folder.checkpoints / step.name)
        before_after(cfg, tuned).savefig(folder.media / "before_after.png")
    write_atomic(folder.media / "captions.json", json.dumps(CAPTIONS, indent=1) + "\n")


def before_after(cfg: Any, tuned: Path) -> Any:
    """A figure of plans of the base, and below of the tuned network, from the same held-out starts in the same noise.

    The starts are the first blocked ones of the first seed, other ones where there are too few. Each maze's title says
    how many of its plans come by the goal.
    """
    executor = build(cfg.executor, trust=cfg.trust)
    plans, titles = [], []
    for name, checkpoint in ((BASE, cfg.checkpoint), ("tuned", str(tuned))):
        own = policy(OmegaConf.merge(cfg, {"checkpoint": checkpoint}), executor)
        maze, steps = own.task.maze, own.task.steps
        starts, goals = own.task.starts(cfg.episodes, cfg.seeds[0])
        first = np.argsort(~blocked_mask(own.task.world, starts, goals), kind="stable")[:cfg.pictures]
        starts, goals = starts[first], goals[first]
        found = fans(own.planner, starts, goals, steps)
        near = (np.linalg.norm(found - goals[:, None, None], axis=-1) <= maze.frame.goal_radius).any(-1).sum(-1)
        plans += list(on_paper(maze, found))
        titles += [f"{name}: {count} of {found.shape[1]} arrive" for count in near]
    begin, end = on_paper(maze, starts[:, :2]), on_paper(maze, goals)
    return plan_grid(maze.walls, plans, [None] * len(plans), np.tile(begin, (2, 1)), np.tile(end, (2, 1)), titles,
                     columns=len(starts), reach=reach(maze))
