"""`dforce demo`: demonstrations, training, planning, scores and a page to open, in one command."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from dforce.cli.commands.plan import FEW, build_planner, score, worth_drawing
from dforce.cli.commands.train import train
from dforce.config import build
from dforce.data import load_episodes
from dforce.data.generate.maze import make_maze_dataset
from dforce.envs import Maze, get_maze
from dforce.planning.baselines.drivers import retrieval_planner
from dforce.planning.evaluation import Comparison, Method, difference, once, planned, references
from dforce.planning.pictures import draw
from dforce.planning.planner import DiffusionPlanner
from dforce.planning.scores import Row, fresh_starts
from dforce.report.plots.maze import coverage
from dforce.runs.folder import RunFolder
from dforce.train.checkpoint import load
from dforce.train.precision import device_of

SMALL = 40_000  # environment steps of data under fast_dev_run


def run(cfg: Any, folder: RunFolder) -> None:
    """The whole road; see configs/demo.yaml."""
    maze = get_maze(cfg.maze)
    steps, name = cfg.data_steps, None
    if cfg.fast_dev_run:
        steps, name = SMALL, f"dforce/maze2d-{maze.name}-small-v1"
    data = make_maze_dataset(cfg.maze, steps=steps, noise=cfg.noise, seed=cfg.seed, name=name)
    parts = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    for part in (parts.train, parts.plan):
        part.seed, part.fast_dev_run, part.trust = cfg.seed, cfg.fast_dev_run, cfg.trust
    parts.train.data = data
    checkpoint = train(parts.train, folder)

    planner = build_planner(parts.plan, load(checkpoint, device=device_of(None), trust=cfg.trust))
    starts = fresh_starts(maze, FEW if cfg.fast_dev_run else cfg.episodes, cfg.seed)
    memory = _chains(data)
    methods = [*references(maze, seed=cfg.seed), *_methods(parts, maze, planner, memory)]
    compared = score(folder, maze, methods, starts, np.asarray(maze.goal, float), task=f"maze2d-{maze.name}",
                     more=lambda compared: _differences(compared, methods))
    draw(folder.media, maze, planner, compared.played[_number(methods, "MCTG")],
         worth_drawing(compared, parts.plan.pictures))
    coverage(maze.walls, memory[0].reshape(-1, 4)[:, :2], "where the demonstrations are").savefig(
        folder.media / "coverage.png")
    if cfg.fast_dev_run:
        print("fast_dev_run: the planner saw a few batches only, so its scores mean nothing")
    print("a larger maze, with a planner that ships: dforce plan maze=medium checkpoint=pretrained")


def _methods(cfg: Any, maze: Maze, planner: DiffusionPlanner, memory: tuple[np.ndarray, np.ndarray]) -> list[Method]:
    """Retrieval, then every planner of cfg.methods, each under all executors of cfg.executors."""
    usual = build(cfg.plan.executor, trust=cfg.trust)
    executors = [replace(usual, **changes) for changes in cfg.executors]
    retrieval = [(0.1, executors), (0.0, executors[:1])]  # the quickest of the near starts, and the nearest
    methods = []
    for slack, chosen in retrieval:
        plans = once(retrieval_planner(*memory, horizon=maze.max_steps, slack=slack))
        methods += [planned("retrieval", maze, plans, executor, seed=cfg.seed, variant={"slack": slack})
                    for executor in chosen]
    for name, changes in cfg.methods.items():
        plans = once(planner.with_(**changes))
        methods += [planned(name, maze, plans, executor, seed=cfg.seed) for executor in executors]
    return methods


def _differences(compared: Comparison, methods: list[Method]) -> list[Row]:
    """MCTG against each other planner of the list under the first executor, paired on the same starts."""
    tree = _number(methods, "MCTG")
    rivals = ("guided", "full sequence", "retrieval", "controller")
    others = [name for name in dict.fromkeys(method.name for method in methods) if name in rivals]
    return [row for other in others for row in difference(
        compared.rows[0]["task"], f"MCTG - {other}", compared.reports[tree], compared.reports[_number(methods, other)])]


def _number(methods: list[Method], name: str) -> int:
    """Number of the first method of that name."""
    return next(i for i, method in enumerate(methods) if method.name == name)


def _chains(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The demonstrations as equal chains: observations [C, S + 1, 4], actions [C, S, 2]."""
    episodes = load_episodes(name)
    count = len(episodes)
    return episodes.observations.reshape(count, -1, 4), episodes.actions.reshape(count, -1, 2)
