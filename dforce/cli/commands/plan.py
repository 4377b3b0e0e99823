"""`dforce plan`: a checkpoint's planner beside drivers that learn nothing, from the same fresh starts."""

from __future__ import annotations

from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig

from dforce.config import build
from dforce.envs import Maze, World, as_world
from dforce.planning.evaluation import Comparison, Method, compare, planned, references
from dforce.planning.pictures import draw
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.tasks import get_task, trained_task
from dforce.report.plots.curves import bars_with_intervals
from dforce.report.table import markdown_table
from dforce.runs.checkpoint_defaults import suited
from dforce.runs.folder import RunFolder, Ticker
from dforce.train.checkpoint import Bundle, CheckpointError, load
from dforce.train.precision import choose, device_of

FEW = 8  # episodes under fast_dev_run


def run(cfg: Any, folder: RunFolder) -> None:
    """Plans, drives, scores and draws as cfg says."""
    if not cfg.checkpoint:
        raise ValueError("checkpoint is needed: a run folder of `dforce train`, a checkpoint, or the name of a model "
                         "that ships with dforce")
    name = f"maze2d-{cfg.maze or 'umaze'}" if cfg.checkpoint == "pretrained" else cfg.checkpoint
    bundle = load(name, device=device_of(cfg.device), raw=cfg.raw, trust=cfg.trust)
    brought = {f"planner.{key}": value for key, value in bundle.config.get("planner", {}).items()}
    cfg = suited(cfg, brought, given=HydraConfig.get().overrides.task, unless=("planner", "planner._target_"))
    planner = build_planner(cfg, bundle)
    trained = trained_task(bundle.layout)
    task = trained if cfg.maze is None else get_task(cfg.maze)
    maze = task.maze
    if (maze.rows, maze.frame) != (trained.maze.rows, trained.maze.frame):
        print(f"note: {name} was trained in {trained.name}, and is driven in {task.name}")
    executor = build(cfg.executor, trust=cfg.trust)
    starts, goals = task.starts(FEW if cfg.fast_dev_run else cfg.episodes, cfg.seed)
    method = getattr(planner, "method", "unguided" if not cfg.planner.scale else "MCTG" if cfg.planner.draws > 1
                     else "guided")
    methods = [*references(task.world, seed=cfg.seed),
               planned(method, task.world, planner, executor, seed=cfg.seed, replan_every=cfg.replan_every,
                       shrink=cfg.shrink)]
    compared = score(folder, task.world, methods, starts, goals, task=task.name)
    draw(folder.media, maze, planner, compared.played[-1], worth_drawing(compared, cfg.pictures))


def build_planner(cfg: Any, bundle: Bundle) -> DiffusionPlanner:
    """The planner node of cfg around a checkpoint. CheckpointError if it was not trained on a maze."""
    try:
        trained_task(bundle.layout)
    except ValueError as error:
        raise CheckpointError(f"{error}; plan with one that `dforce train data=dforce/maze2d-<maze>-v1` made"
                              ) from error
    if bundle.normalizer is None:
        raise CheckpointError("this checkpoint has no normalizer, so its plans have no units; plan with one that "
                              "`dforce train` made")
    for parameter in bundle.denoiser.parameters():
        parameter.requires_grad_(False)  # guidance differentiates in the plan, not in the weights
    bf16 = choose(cfg.precision, bundle.schedule.alpha.device).name == "bf16"
    return build(cfg.planner, trust=cfg.trust)(bundle.denoiser, bundle.schedule, bundle.normalizer, bundle.layout,
                                               bf16=bf16)


def score(folder: RunFolder, place: Maze | World, methods: list[Method], starts: np.ndarray, goals: np.ndarray, *,
          task: str, more: Any = lambda compared: []) -> Comparison:
    """Play all methods, write results.json, episodes.jsonl and media/score.png, print the table.

    `more(comparison)` gives further rows, such as paired differences.
    """
    with Ticker(len(methods), "evaluate") as ticker:
        def counted() -> Any:
            for method in methods:
                yield method
                ticker.advance(note=method.name)

        compared = compare(place, counted(), starts, goals, task=task)
    rows = compared.rows + more(compared)
    folder.results(rows)
    folder.episodes(compared.episodes)
    metric = "score" if as_world(place).maze.ref_min is not None else "return"  # only D4RL has reference returns
    shown = [row for row in rows if row["metric"] in (metric, "success")]
    bars_with_intervals(shown, metric, references=("straight", "controller")).savefig(folder.media / "score.png")
    print(markdown_table(shown, metrics=(metric, "success")))
    return compared


def worth_drawing(compared: Comparison, count: int) -> np.ndarray:
    """The first blocked episodes, in which there is something to plan; others where there are too few."""
    return np.argsort(~compared.blocked, kind="stable")[:count]
