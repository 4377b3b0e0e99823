"""Rows, tables and pictures of `dforce align planner`, from all results in its folder."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dforce.planning.evaluation import common, difference
from dforce.planning.pictures import fans, on_paper, reach
from dforce.planning.scores import ScoreReport, blocked_mask
from dforce.planning.tuning import PlannerTuning
from dforce.report.plots.maze import plan_grid
from dforce.report.plots.monitor import tuning_curves
from dforce.report.rows import Row, make_row, write_episodes
from dforce.report.statistics import bootstrap_interval
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder
from dforce.runs.jobs import locked

BASE, SAMPLED, GUIDED = "base", "policy", "guided"
SHOWN = ("return", "success")
DIFFERENCES = {"return": "steps at goal, paired", "success": "fraction, paired",
               "score": "D4RL-normalised x100, paired"}
CAPTIONS = {
    "before_after.png": "Eight plans from each of some held-out starts: above the base's, below the tuned one's, in "
                        "the same noise.",
    "curves.png": "Return, success and KL to the base of plans from starts of their own, as tuning goes on.",
}


def tuned_folder(root: Path, algorithm: str, seed: int) -> Path:
    """The folder of one tuning, which `dforce plan checkpoint=` takes."""
    return root / "tuned" / f"{algorithm}-{seed}"


def report_tuning(tuning: PlannerTuning, folder: RunFolder) -> None:
    """results.json, episodes.jsonl, the table and the pictures of all results there are; nothing where are none."""
    files = sorted((folder.path / "played").glob("*.json"), key=lambda file: (BASE != _named(file)[0], file.stem))
    played = {_named(file): json.loads(file.read_text("utf-8")) for file in files}
    if not played:
        return
    with locked(folder.path / "locks" / "report.lock", wait=True):
        reports = joined(played)
        task = next(iter(played.values()))["task"]
        rows = [row for (name, _), (one, variant) in reports.items()
                for row in one.rows(task=task, method=name, variant=variant)]
        rows += differences(task, reports, set(tuned_names(played))) + divergences(task, played)
        curves = read_curves(folder.path / "tuned", list(tuning.algorithms))
        folder.results(rows, tuning_cpu_seconds=round(sum(lines[-1]["cpu_seconds"] for lines in curves.values()), 1))
        lines = [line for (name, _), (one, variant) in reports.items()
                 for line in one.episodes(task=task, method=name, variant=variant)]
        write_episodes(folder.path / "episodes.jsonl", lines)
        _draw(tuning, folder, curves)
    print(terminal_table([row for row in rows if row["task"] == task and row["metric"] in SHOWN], metrics=SHOWN))
    print(terminal_table([row for row in rows if row["metric"] == "return_difference"]))


def _named(file: Path) -> tuple[str, int]:
    """(name, seed) of played/<name>-<seed>.json."""
    name, _, seed = file.stem.rpartition("-")
    return name, int(seed)


def joined(played: dict[tuple[str, int], dict[str, Any]]) -> dict[tuple[str, str], tuple[ScoreReport, dict[str, Any]]]:
    """(method, how it samples) -> the episodes of all its seeds, and its variant."""
    parts: dict[tuple[str, str], list[tuple[int, dict[str, Any], list[bool]]]] = {}
    for (_, seed), one in played.items():
        for method in one["methods"]:
            key = (method["method"], method["variant"].get("sampling", ""))
            parts.setdefault(key, []).append((seed, method, one["blocked"]))
    reports = {}
    for key, seeds in parts.items():
        seeds = sorted(seeds, key=lambda part: part[0])
        values = {metric: np.concatenate([np.asarray(part[1]["values"][metric]) for part in seeds])
                  for metric in seeds[0][1]["values"]}
        number = np.repeat([part[0] for part in seeds], [len(part[2]) for part in seeds])
        blocked = np.concatenate([np.asarray(part[2], dtype=bool) for part in seeds])
        reports[key] = ScoreReport(values, number, blocked), seeds[0][1]["variant"]
    return reports


def differences(task: str, reports: dict[tuple[str, str], tuple[ScoreReport, dict[str, Any]]],
                tuned: Collection[str]) -> list[Row]:
    """Every tuned network - the base, guided or not, and - the base's rivals, from the same starts."""
    rows = []
    for name, sampling in [key for key in reports if key[0] in tuned]:
        for other, how in [key for key in reports if key[0] not in tuned and key[1]]:
            if sampling == GUIDED and (other, how) != (BASE, GUIDED):
                continue  # guidance is compared with guidance
            one, base = reports[name, sampling][0], reports[other, how][0]
            if not np.isin(one.seed, base.seed).all():  # that seed of the other has not been played yet
                continue
            label = " - ".join(who + (f" {GUIDED}" if way == GUIDED else "") for who, way in
                               ((name, sampling), (other, how)))
            pair = common(one, base)
            for metric, unit in DIFFERENCES.items():
                if metric in pair[0].values:
                    rows += difference(task, label, *pair, metric=metric, unit=unit)
    return rows


def tuned_names(played: Mapping[tuple[str, int], Any]) -> list[str]:
    """The algorithms among what was played."""
    return list(dict.fromkeys(name for name, _ in played if name != BASE))


def divergences(task: str, played: dict[tuple[str, int], dict[str, Any]]) -> list[Row]:
    """KL of what was tuned to the base, of whole plans."""
    rows = []
    for name in tuned_names(played):
        parts = [(seed, one["kl"]) for (other, seed), one in played.items() if other == name]
        values = np.concatenate([kl for _, kl in parts])
        seed = np.repeat([seed for seed, _ in parts], [len(kl) for _, kl in parts])
        rows.append(make_row(f"{task}, divergence", name, "kl",
                             bootstrap_interval(values, seed, rng=np.random.default_rng(0)),
                             variant={"sampling": SAMPLED}, seeds=len(parts), unit="nats of a plan, to the base",
                             higher=False))
    return rows


def read_curves(tuned: Path, algorithms: list[str]) -> dict[str, list[dict[str, Any]]]:
    """"<algorithm>-<seed>" -> the lines of its curve.jsonl, of the algorithms asked for."""
    return {file.parent.name: [json.loads(line) for line in file.read_text("utf-8").splitlines()]
            for file in sorted(tuned.glob("*/curve.jsonl")) if file.parent.name.rpartition("-")[0] in algorithms}


def _draw(tuning: PlannerTuning, folder: RunFolder, curves: dict[str, list[dict[str, Any]]]) -> None:
    """curves.png; after the first algorithm's first tuning before_after.png, and its checkpoint as the run's."""
    tuned = tuned_folder(folder.path, next(iter(tuning.algorithms)), tuning.seeds[0])
    if curves:
        tuning_curves(curves).savefig(folder.media / "curves.png")
    if (tuned / "done").is_file():
        if not any(folder.checkpoints.glob("step_*")):
            for step in (tuned / "checkpoints").glob("step_*"):
                shutil.copytree(step, folder.checkpoints / f".{step.name}")
                (folder.checkpoints / f".{step.name}").rename(folder.checkpoints / step.name)
        before_after(tuning, tuned).savefig(folder.media / "before_after.png")
    folder.captions(CAPTIONS)


def before_after(tuning: PlannerTuning, tuned: Path) -> Figure:
    """Plans of the base, and below of the tuned network, from the same held-out, first blocked, starts and noise."""
    plans, titles = [], []
    for name, checkpoint in ((BASE, None), ("tuned", str(tuned))):
        policy = tuning.load(checkpoint)
        task = policy.task
        starts, goals = task.starts(tuning.episodes, tuning.seeds[0])
        first = np.argsort(~blocked_mask(task.world, starts, goals), kind="stable")[:tuning.pictures]
        starts, goals = starts[first], goals[first]
        fan = fans(policy.planner, starts, goals, task.steps)
        near = (np.linalg.norm(fan - goals[:, None, None], axis=-1) <= task.maze.frame.goal_radius).any(-1).sum(-1)
        plans += list(on_paper(task.maze, fan))
        titles += [f"{name}: {count} of {fan.shape[1]} arrive" for count in near]
    maze = task.maze
    begin, end = on_paper(maze, starts[:, :2]), on_paper(maze, goals)
    return plan_grid(maze.walls, plans, [None] * len(plans), np.tile(begin, (2, 1)), np.tile(end, (2, 1)), titles,
                     columns=len(starts), reach=reach(maze))
