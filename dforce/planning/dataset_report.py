"""What a run folder says of demonstrations of a maze: how many there are, and where they went."""

import numpy as np

from dforce.data import load_episodes
from dforce.envs import Maze
from dforce.planning.pictures import on_paper
from dforce.report.plots.maze import coverage
from dforce.report.rows import make_row
from dforce.runs.folder import RunFolder


def report_dataset(folder: RunFolder, name: str, maze: Maze) -> None:
    """results.json and media/coverage.png of the Minari data set `name`, recorded in `maze`."""
    episodes = load_episodes(name)
    positions = episodes.observations[:, :2]
    visited = {tuple(cell) for cell in np.round(maze.frame.grid(positions)).astype(int).tolist()}
    free = {tuple(cell) for cell in np.argwhere(~maze.walls).tolist()}
    rows = [make_row(maze.name, "demonstrations", metric, float(value), n=len(episodes), unit=unit)
            for metric, value, unit in (("episodes", len(episodes), ""), ("steps", episodes.steps, ""),
                                        ("free cells visited", len(visited & free), f"of {len(free)}"))]
    folder.results(rows, data=name, summary=f"{len(episodes):,} episodes, {episodes.steps:,} steps in all, in the "
                   f"maze {maze.name}, as the data set {name}; to learn from it: dforce train data={name}")
    coverage(maze.walls, on_paper(maze, positions), "where the demonstrations are").savefig(
        folder.media / "coverage.png")
    folder.captions({"coverage.png": "How often the demonstrations came by."})
