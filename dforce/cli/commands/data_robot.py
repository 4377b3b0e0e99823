"""`dforce data robot`: demonstrations of a robot task by its scripted expert, into the local Minari store."""

from dataclasses import replace
from typing import Any

import numpy as np

from dforce.config import read
from dforce.data.generate.robot import Demonstration, RobotGeneration
from dforce.report.movie import write_frames
from dforce.report.rows import make_row
from dforce.report.statistics import median_interval, wilson_interval
from dforce.runs.folder import Invocation, Ticker

FPS = 20


def run(cfg: Any, call: Invocation) -> None:
    """Generates the data set; it goes into the Minari store, a film and how often the expert succeeds into the run."""
    generation = read(cfg, RobotGeneration)
    if cfg["fast_dev_run"] and not generation.name:
        generation = replace(generation, name="robot/fast-dev-run-v0", overwrite=True)
    with call.folder() as folder:
        played: list[Demonstration] = []
        with Ticker(generation.episodes, "episodes") as ticker:
            def report(each: Demonstration) -> None:
                played.append(each._replace(arrays={}))
                ticker.advance(int(each.success))

            made = generation.make(report)
        success, rows = [each.success for each in played], []
        if made:
            steps = median_interval(np.array([each.steps for each in played if each.success]))
            rows = [make_row(generation.task, "expert", "success", wilson_interval(sum(success), len(success)),
                             higher=True), make_row(generation.task, "expert", "steps", steps)]
        summary = (f"{generation.episodes:,} demonstrations of {generation.task} as the data set {generation.dataset}"
                   + (f"; the expert failed in {success.count(False)} more" if made else ", which was there"))
        folder.episodes({"seed": each.seed, "success": each.success, "steps": each.steps} for each in played)
        folder.results(rows, data=generation.dataset, summary=summary)
        try:
            film = write_frames(folder.media / "expert.mp4", generation.film(), fps=FPS)
            folder.captions({
                film.name: f"The first demonstration at {FPS / 10:g} times its speed, as the cameras see it."})
        except RuntimeError as error:
            print(f"no film: {error}")
        print(summary)
