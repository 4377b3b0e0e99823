"""The whole road at once: demonstrations of a maze, training, planning, scores, pictures."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dforce.data import load_episodes
from dforce.data.generate.maze import make_maze_dataset
from dforce.envs import Maze, as_world, get_maze
from dforce.planning.baselines.drivers import retrieval_planner
from dforce.planning.control import tracking
from dforce.planning.evaluation import Comparison, Method, difference, once, planned, reference_methods
from dforce.planning.pictures import draw_plans
from dforce.planning.run import PlanRun, score_methods, worth_drawing
from dforce.planning.scores import fresh_starts
from dforce.report.plots.maze import coverage
from dforce.report.rows import Row
from dforce.runs.folder import RunFolder
from dforce.runs.progress import bar
from dforce.runs.training_run import follow
from dforce.runs.trajectory_training import TrajectoryTraining
from dforce.train.checkpoint import load
from dforce.train.precision import device_of

USUAL = 1_000_000  # environment steps of data, as D4RL has
RIVALS = ("MCTG", "guided", "full sequence", "retrieval", "controller")  # what the main planner is compared with
SHOWN = ("straight", "controller", "retrieval", "guided")  # what is printed beside it


@dataclass(frozen=True)
class Demo:
    """The settings of `dforce demo`: see configs/verbs/demo/demo.yaml. record: configuration, for checkpoints."""

    maze: str
    data_steps: int
    noise: float
    episodes: int
    methods: dict[str, dict[str, Any]]
    executors: list[dict[str, Any]]
    seed: int
    fast_dev_run: bool
    training: TrajectoryTraining
    planning: PlanRun
    record: dict[str, Any]
    trust: str | None = None

    def run(self, folder: RunFolder) -> None:
        """Everything, into one run folder."""
        maze = get_maze(self.maze)
        steps = self.data_steps
        name = None if steps == USUAL else f"dforce/maze2d-{maze.name}-{steps}-v1"
        with bar("generate") as advance:
            data = make_maze_dataset(self.maze, steps=steps, noise=self.noise, seed=self.seed, name=name,
                                     advance=advance)
        training = replace(self.training, data=data)
        checkpoint = follow(training, training.prepare(), folder, {**self.record, "data": data})

        planner = self.planning.around(load(checkpoint, device=device_of(None), trust=self.trust))
        starts = fresh_starts(maze, self.episodes, self.seed)
        chains = load_episodes(data).chains()
        methods = [*reference_methods(maze, seed=self.seed), *self._methods(maze, planner, chains)]
        compared = score_methods(folder, as_world(maze), methods, starts, np.asarray(maze.goal, float),
                                 task=f"maze2d-{maze.name}", more=lambda compared: _differences(compared, methods),
                                 shown=self._shown(methods))
        with bar("draw") as advance:
            draw_plans(folder.media, maze, planner, compared.played[_number(methods, methods[-1].name)],
                       worth_drawing(compared, self.planning.pictures), advance=advance)
        coverage(maze.walls, chains[0].reshape(-1, 4)[:, :2], "where the demonstrations are").savefig(
            folder.media / "coverage.png")
        if self.fast_dev_run:
            print("fast_dev_run: the planner saw a few batches only, so its scores mean nothing")
        print("a larger maze, with a planner that ships: dforce plan maze=medium checkpoint=pretrained")

    def _shown(self, methods: list[Method]) -> Callable[[Row], bool]:
        """Of SHOWN and the main planner the first variant each: five rows."""
        first = {name: methods[_number(methods, name)].variant for name in {method.name for method in methods}}
        chosen = {*SHOWN, methods[-1].name}
        return lambda row: row["method"] in chosen and first[row["method"]].items() <= row["variant"].items()

    def _methods(self, maze: Maze, planner: Any, chains: tuple[np.ndarray, np.ndarray]) -> list[Method]:
        """Retrieval, then the planner in all its variants, each under all executors."""
        usual = self.planning.executor
        if not isinstance(usual, tracking):
            raise ValueError("the executors of the demo are changes to `tracking`: leave plan.executor as it is")
        executors = [replace(usual, **changes) for changes in self.executors]
        methods = []
        for slack, chosen in ((0.1, executors), (0.0, executors[:1])):  # the quickest of the near starts; the nearest
            plans = once(retrieval_planner(*chains, horizon=maze.max_steps, slack=slack))
            methods += [planned("retrieval", maze, plans, executor, seed=self.seed, variant={"slack": slack})
                        for executor in chosen]
        for name, changes in self.methods.items():
            plans = once(planner.with_(**changes))
            methods += [planned(name, maze, plans, executor, seed=self.seed) for executor in executors]
        return methods


def _differences(compared: Comparison, methods: list[Method]) -> list[Row]:
    """The last planner against each rival under the first executor, paired on the same starts."""
    main = methods[-1].name
    tree = _number(methods, main)
    others = [name for name in dict.fromkeys(method.name for method in methods) if name in RIVALS and name != main]
    task, reports = compared.rows[0]["task"], compared.reports
    return [row for other in others
            for row in difference(task, f"{main} - {other}", reports[tree], reports[_number(methods, other)])]


def _number(methods: list[Method], name: str) -> int:
    """Number of the first method of that name."""
    return next(i for i, method in enumerate(methods) if method.name == name)
