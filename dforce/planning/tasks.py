"""The tasks of the planning benchmark: a maze, its starts and goals, and the demonstrations that one learns it from."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dforce.config import nearest
from dforce.data.generate import maze as mazes
from dforce.data.generate.maze import RELEASED_STEPS, custom_name
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
        """The name of the task's demonstrations in the Minari store, made where missing; steps None: D4RL's.

        advance: told the shares of the simulation as they are done, 1 in all.
        """
        return self.demonstrate(steps, advance)


def get_task(name: str) -> Task:
    """A task by its name, or maze2d in a maze of one's own: its name, a text grid, or a file; its 'G' is the goal."""
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
    grid = get_maze(maze)
    text, known, released = "/".join(grid.rows), grid.name in MAZES, RELEASED_STEPS.get(grid.name, 1_000_000)
    name = f"maze2d-{grid.name if known else custom_name(text)}"

    def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return fresh_starts(grid, n, seed), np.tile(np.asarray(grid.goal, dtype=np.float64), (n, 1))

    return Task(name, as_world(grid), grid.max_steps, draw, lambda steps, advance: mazes.make_maze_dataset(
        grid.name if known else text, steps=steps or released, name=dataset_name(name, steps, released),
        advance=advance))


def multi2d(maze: Maze | str) -> Task:
    """Diffuser's Multi2D: the start and data of maze2d, then D4RL's `set_target()`, a uniform free cell +-.1."""
    grid = get_maze(maze)
    return maze2d(grid)._replace(name=f"multi2d-{grid.name}", draw=lambda n, seed: (  # goals: a stream of their own
        fresh_starts(grid, n, seed), sample_goals(grid, n, np.random.default_rng([seed, 1]))))


def pointmaze_task(size: str) -> Task:
    """Gymnasium-Robotics' PointMaze-v3: start and a random goal by its own reset; it has no normalised scores."""
    world, released, name = pointmaze(size), RELEASED_STEPS.get(size, 1_000_000), f"pointmaze-{size}"
    return Task(name, world, world.max_steps, partial(pointmaze_starts, size), lambda steps, advance:
                mazes.make_pointmaze_dataset(size, steps=steps or released, advance=advance,
                                             name=dataset_name(name, steps, released)))


def ogbench_task(size: str) -> Task:
    """OGBench's pointmaze-<size>-navigate, its five tasks in turn; here an episode goes on at the goal."""
    world, (episodes, length) = ogbench(size), RECIPE[size]

    def demonstrate(steps: int | None, advance: Advance) -> str:
        count = episodes if steps is None else max(2, steps // length)
        name = dataset_name(f"ogbench-{size}-navigate", count * length, episodes * length)
        return mazes.make_ogbench_dataset(size, episodes=count, length=length, name=name, advance=advance)

    return Task(f"ogbench-{size}", world, world.max_steps, partial(ogbench_starts, size), demonstrate)


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
        named = "if its data are of a maze, name that beside checkpoint=, say maze=umaze" if widths in PLANAR else hint
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


TASKS: dict[str, Callable[[], Task]] = {
    **{f"maze2d-{name}": partial(maze2d, name) for name in ("umaze", "medium", "large", "open")},
    **{f"multi2d-{name}": partial(multi2d, name) for name in ("umaze", "medium", "large")},
    **{f"pointmaze-{name}": partial(pointmaze_task, name) for name in IDS},
    **{f"ogbench-{name}": partial(ogbench_task, name) for name in RECIPE},
}
