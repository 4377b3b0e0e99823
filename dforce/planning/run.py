"""A checkpoint's planner beside drivers that learn nothing, played from the same fresh starts."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dforce.envs import Env
from dforce.planning.control import Executor
from dforce.planning.evaluation import Comparison, Method, compare_methods, planned, reference_methods
from dforce.planning.pictures import draw_plans
from dforce.planning.planner import planner_around
from dforce.planning.tasks import task_of, trained_task
from dforce.planning.worlds import maze_of
from dforce.report.plots.curves import bars_with_intervals
from dforce.report.rows import Row
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder
from dforce.runs.progress import bar
from dforce.train.checkpoint import Bundle
from dforce.train.precision import choose

PLANS = ("leaps", "in_wall", "plan_tokens", "plan_seconds")  # what is printed of plans


@dataclass(frozen=True)
class PlanRun:
    """The settings of `dforce plan`; configs/verbs/plan/plan.yaml says what each does."""

    planner: Callable[..., Any]
    executor: Executor
    precision: Literal["auto", "fp32", "bf16"]
    pictures: int
    maze: str | None = None
    episodes: int = 200
    seed: int = 0
    replan_every: int | None = None
    shrink: bool = False
    beside: dict[str, dict[str, Any]] | None = None

    def around(self, bundle: Bundle) -> Any:
        """The planner of a checkpoint. Raises CheckpointError for one that cannot plan in the maze."""
        task_of(bundle, self.maze)
        bf16 = choose(self.precision, bundle.schedule.alpha.device).name == "bf16"
        return planner_around(bundle, self.planner, bf16=bf16)

    def prepare(self, bundle: Bundle, name: str) -> Callable[[RunFolder], Comparison]:
        """All that can be refused before a run begins; then play(folder). name: of the checkpoint, for messages."""
        planner, task = self.around(bundle), task_of(bundle, self.maze)
        with contextlib.suppress(ValueError):  # of a file that does not say where its data are from
            trained = trained_task(bundle.layout)
            if (task.maze.rows, task.maze.frame) != (trained.maze.rows, trained.maze.frame):
                print(f"note: {name} was trained in {trained.name}, and is driven in {task.name}")
        starts, goals = task.starts(self.episodes, self.seed)
        main = str(getattr(planner, "method", type(planner).__name__))
        planners = {name: planner.with_(**changes) for name, changes in (self.beside or {}).items()} | {main: planner}
        methods = [*reference_methods(task.world, seed=self.seed),
                   *(planned(name, task.world, one, self.executor, seed=self.seed, replan_every=self.replan_every,
                             shrink=self.shrink) for name, one in planners.items())]

        def play(folder: RunFolder) -> Comparison:
            compared = score_methods(folder, task.world, methods, starts, goals, task=task.name)
            if self.pictures:
                with bar("draw") as advance:
                    draw_plans(folder.media, task.maze, planner, compared.played[-1],
                               worth_drawing(compared, self.pictures), advance=advance)
            return compared

        return play


def score_methods(folder: RunFolder, world: Env, methods: Sequence[Method], starts: np.ndarray, goals: np.ndarray, *,
                  task: str, more: Callable[[Comparison], list[Row]] = lambda compared: [],
                  shown: Callable[[Row], bool] = lambda row: True) -> Comparison:
    """Plays all methods, writes results.json (and `more` rows), episodes.jsonl, media/score.png, prints the tables.

    shown: the rows that are printed and drawn; all are written.
    """
    compared = compare_methods(world, methods, starts, goals, task=task, bar=bar)
    rows, summary = compared.rows + more(compared), _summary(compared, task)
    folder.results(rows, summary=summary)
    folder.episodes(compared.episodes)
    maze = maze_of(world)
    metric = "score" if maze is not None and maze.ref_min is not None else "return"  # only D4RL has reference returns
    rows = [row for row in rows if shown(row)]
    bars_with_intervals([row for row in rows if row["metric"] in (metric, "success")], metric,
                        references=("straight", "controller")).savefig(folder.media / "score.png")
    print(terminal_table(rows, metrics=(metric, "success")))
    print(terminal_table([row for row in rows if row["metric"] in PLANS and row["variant"].get("starts") != "all"]
                         or rows, metrics=PLANS))
    print(summary)
    return compared


def _summary(compared: Comparison, task: str) -> str:
    """From how many starts each method came to the goal, the last method first; of a name the first variant counts."""
    arrived: dict[str, str] = {}
    for name, report in zip(compared.methods, compared.reports, strict=True):
        there, stuck = report.values["success"] > 0, report.blocked
        arrived.setdefault(name, f"{int(there.sum())} of {len(stuck)} starts, {int((there & stuck).sum())} of the "
                                 f"{int(stuck.sum())} from which straight driving gets stuck")
    *others, (last, count) = arrived.items()
    beside = ", ".join(f"{name} from {number.split(' starts')[0]}" for name, number in others)
    return f"{last} came to the goal of {task} from {count}" + (f"; {beside}." if beside else ".")


def worth_drawing(compared: Comparison, count: int) -> np.ndarray:
    """Numbers of the first `count` blocked episodes, in which there is something to plan; others where those end."""
    return np.argsort(~compared.blocked, kind="stable")[:count]
