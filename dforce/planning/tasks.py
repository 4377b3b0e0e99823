"""The tasks of the planning benchmark: a maze, its starts and goals, and the demonstrations that one learns it from.

A task is a frozen value, found by name (`get_task`). Starts and goals follow the law of the environment's own reset,
drawn fresh from a seed, so that all methods can be played from the same ones.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dforce.config import nearest
from dforce.data.generate.maze import RELEASED_STEPS, make_maze_dataset, make_ogbench_dataset, make_pointmaze_dataset
from dforce.envs import MAZES, Env, Maze, as_world, get_maze, sample_goals
from dforce.envs.maze.ogbench import RECIPE, ogbench, ogbench_starts
from dforce.envs.maze.pointmaze import IDS, pointmaze, pointmaze_starts
from dforce.planning.scores import fresh_starts
from dforce.planning.worlds import maze_of
from dforce.runs.progress import Advance, no_advance
from dforce.train.checkpoint import Bundle, CheckpointError

PLANAR = ((4, 2), (2, 2))  # widths of observations and actions in a maze: position and velocity, or position
Draw = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


class Task(NamedTuple):
    """One task."""

    name: str
    world: Env  # where its episodes are played
    steps: int  # of an episode
    draw: Draw  # what `starts` calls
    demonstrate: Callable[..., str]  # what `make_data` calls

    @property
    def maze(self) -> Maze:
        """The maze of its world, for pictures and for demonstrations. ValueError where the world is none."""
        maze = maze_of(self.world)
        if maze is None:
            raise ValueError(f"{self.name} is played in {self.world.name}, which is no maze")
        return maze

    def starts(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """n fresh starts and goals of the task's own law, a function of (n, seed): [n, O] and [n, G]."""
        if n < 1:
            raise ValueError(f"n={n}: an evaluation needs at least one start")
        return self.draw(n, seed)

    def make_data(self, *, steps: int | None = None, advance: Advance = no_advance) -> str:
        """The name of the task's demonstrations in the local Minari store; they are generated where they are missing.

        steps: environment steps; None: as many as the published data set has, under its own name. A smaller set has
        a name that says its size. advance: told the shares of the simulation as they are done, 1 in all.
        """
        return self.demonstrate(steps, advance)


def get_task(name: str) -> Task:
    """A task by its name, or maze2d in a maze of one's own: a text grid, or a file that holds one; its 'G' is the goal.

    A maze's name alone (umaze) means maze2d, too. ValueError for what is none of these; it names the nearest.
    """
    if name in TASKS:
        return TASKS[name]()
    if name in MAZES:
        return maze2d(name)
    if "#" in name or Path(name).is_file():
        maze = get_maze(name)
        known = [key for key, other in MAZES.items() if (other.rows, other.goal) == (maze.rows, maze.goal)]
        return maze2d(MAZES[known[0]] if known else maze)
    raise ValueError(f"no task {name!r}{nearest(name, [*TASKS, *MAZES])}; or give a text grid of '#', 'O' and 'G' "
                     'such as "#####/#OOG#/#####", or a file that holds one')


def maze2d(maze: Maze | str) -> Task:
    """D4RL's maze2d: starts by its reset (`fresh_starts`), always to the maze's one goal."""
    maze = get_maze(maze)
    name = f"maze2d-{maze.name}" if maze.name in MAZES else f"maze2d-custom-{_digest(maze)}"
    return Task(name, as_world(maze), maze.max_steps, partial(_maze2d_starts, maze), partial(_maze2d_data, maze))


def multi2d(maze: Maze | str) -> Task:
    """Diffuser's Multi2D: the start of maze2d, then D4RL's `set_target()`, a uniform free cell +-.1 a coordinate.

    The data are those of maze2d.
    """
    maze = get_maze(maze)
    return maze2d(maze)._replace(name=f"multi2d-{maze.name}", draw=partial(_multi2d_starts, maze))


def _maze2d_starts(maze: Maze, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return fresh_starts(maze, n, seed), np.tile(np.asarray(maze.goal, dtype=np.float64), (n, 1))


def _multi2d_starts(maze: Maze, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    # Goals have a stream of their own, so that the starts are those of maze2d for the same seed.
    return fresh_starts(maze, n, seed), sample_goals(maze, n, np.random.default_rng([seed, 1]))


def _maze2d_data(maze: Maze, steps: int | None, advance: Advance) -> str:
    released = RELEASED_STEPS.get(maze.name, 1_000_000)
    short = maze.name if maze.name in MAZES else f"custom-{_digest(maze)}"
    text = maze.name if maze.name in MAZES else "/".join(maze.rows)
    name = dataset_name(f"maze2d-{short}", steps, released)
    return make_maze_dataset(text, steps=steps or released, name=name, advance=advance)


def pointmaze_task(size: str) -> Task:
    """Gymnasium-Robotics' PointMaze-v3: start and goal by its own reset, a random goal each time.

    D4RL-normalised scores do not exist there; returns and success rates do.
    """
    world = pointmaze(size)
    return Task(f"pointmaze-{size}", world, world.max_steps, partial(pointmaze_starts, size),
                partial(_pointmaze_data, size))


def _pointmaze_data(size: str, steps: int | None, advance: Advance) -> str:
    released = RELEASED_STEPS.get(size, 1_000_000)
    return make_pointmaze_dataset(size, steps=steps or released, advance=advance,
                                  name=dataset_name(f"pointmaze-{size}", steps, released))


def ogbench_task(size: str) -> Task:
    """OGBench's pointmaze-<size>: its five tasks in turn, data as for pointmaze-<size>-navigate.

    OGBench reports the success rate, and ends an episode at the goal; here it goes on, which success does not see.
    """
    world = ogbench(size)
    return Task(f"ogbench-{size}", world, world.max_steps, partial(ogbench_starts, size), partial(_ogbench_data, size))


def _ogbench_data(size: str, steps: int | None, advance: Advance) -> str:
    episodes, length = RECIPE[size]
    count = episodes if steps is None else max(2, steps // length)
    return make_ogbench_dataset(size, episodes=count, length=length, advance=advance,
                                name=dataset_name(f"ogbench-{size}-navigate", count * length, episodes * length))


def trained_task(layout: Mapping[str, Any]) -> Task:
    """The task whose demonstrations a model was trained on. layout: a checkpoint's; ValueError if it is no maze's."""
    name = str(layout.get("env", ""))
    name = {env: f"pointmaze-{size}" for size, env in IDS.items()}.get(name.replace("Dense", ""), name)
    if name in TASKS:
        return get_task(name)
    if not name.startswith("maze2d") or "rows" not in layout:
        raise ValueError(f"this checkpoint was trained on {_subject(layout)}, not on a maze that is known")
    return get_task("/".join(layout["rows"]))


def task_of(bundle: Bundle, maze: str | None = None) -> Task:
    """Where a checkpoint plans: in the maze (or task) named, else in that of its demonstrations.

    Raises CheckpointError where it cannot, ValueError for a name that `get_task` does not know.
    """
    widths, hint = _widths(bundle.layout), "take one that `dforce train data=dforce/maze2d-<maze>-v1` made"
    if bundle.normalizer is None or not widths:
        raise CheckpointError(f"this checkpoint was trained on {_subject(bundle.layout)}, not on a maze; {hint}")
    try:
        task = trained_task(bundle.layout) if maze is None else get_task(maze)
    except ValueError as error:
        if maze is not None:
            raise
        named = "if its data are of a maze, name that: dforce plan maze=umaze" if widths in PLANAR else hint
        raise CheckpointError(f"{error}; {named}") from error
    world = task.world.observation_width, task.world.action_width
    if widths != world:
        raise CheckpointError(f"{task.name} has observations of {world[0]} and actions of {world[1]} numbers, this "
                              f"checkpoint was trained on {_subject(bundle.layout)} with {widths[0]} and {widths[1]}")
    return task


def next_command(layout: Mapping[str, Any], checkpoint: str | Path) -> str:
    """What can be done with a checkpoint of `dforce train`, in a line. layout: the checkpoint's."""
    try:
        trained_task(layout)
        return f"plan in the maze that it was trained in: dforce plan checkpoint={checkpoint}"
    except ValueError:
        if _widths(layout) in PLANAR:
            return f"if its data are of a maze, plan in that, say umaze: dforce plan checkpoint={checkpoint} maze=umaze"
        return f"use it from Python: dforce.load('{checkpoint}')"


def _widths(layout: Mapping[str, Any]) -> tuple[int, int] | None:
    """Numbers in an observation and in an action; None for other models than those of trajectories."""
    if "observation" not in layout or "action" not in layout:
        return None
    (a, b), (c, d) = layout["action"], layout["observation"]
    return d - c, b - a


def _subject(layout: Mapping[str, Any]) -> str:
    return str(layout.get("env") or layout.get("dataset") or layout.get("kind") or "another kind of data")


def dataset_name(task: str, steps: int | None, released: int) -> str:
    """dforce/<task>-v1, or dforce/<task>-<steps>-v1 for another size than the released one."""
    return f"dforce/{task}-v1" if steps in (None, released) else f"dforce/{task}-{steps}-v1"


def _digest(maze: Maze) -> str:
    return hashlib.sha256("/".join(maze.rows).encode()).hexdigest()[:8]


TASKS: dict[str, Callable[[], Task]] = {
    **{f"maze2d-{name}": partial(maze2d, name) for name in ("umaze", "medium", "large", "open")},
    **{f"multi2d-{name}": partial(multi2d, name) for name in ("umaze", "medium", "large")},
    **{f"pointmaze-{name}": partial(pointmaze_task, name) for name in IDS},
    **{f"ogbench-{name}": partial(ogbench_task, name) for name in RECIPE},
}
