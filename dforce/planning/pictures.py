"""The pictures of a planning run, into a media folder: fans of plans, episodes, denoising, film, schedule matrix."""

from pathlib import Path

import numpy as np

from dforce.envs import Maze
from dforce.envs.maze.frame import D4RL
from dforce.guidance.reporting import share_of
from dforce.planning.control import Executed, Planner
from dforce.planning.evaluation import watched
from dforce.planning.planner import DiffusionPlanner
from dforce.report.movie import animation
from dforce.report.plots.curves import schedule_heatmap
from dforce.report.plots.maze import denoising_strip, plan_figure, plan_grid
from dforce.runs.progress import Advance, no_advance

FAN = 8  # plans of one start


def fans(planner: Planner, starts: np.ndarray, goals: np.ndarray, steps: int, *, seed: int = 1) -> np.ndarray:
    """Positions [E, FAN, H, 2] of several plans from each start [E, 4] to its goal [E, 2]."""
    plan = planner(np.repeat(starts, FAN, 0), np.repeat(goals, FAN, 0), steps, np.random.default_rng(seed))
    return plan.states[..., :2].reshape(len(starts), FAN, -1, 2)


def on_paper(maze: Maze, positions: np.ndarray) -> np.ndarray:
    """Positions [..., 2] of any maze's frame as the pictures want them: in D4RL's, a cell being 1 m."""
    return positions if maze.frame == D4RL else D4RL.position(maze.frame.grid(positions))


def reach(maze: Maze) -> float:
    """Radius in cells of the disc around a goal in which the reward is 1."""
    return maze.frame.goal_radius / maze.frame.unit


def draw_plans(media: Path, maze: Maze, planner: Planner, played: Executed, episodes: np.ndarray, *,
               advance: Advance = no_advance) -> None:
    """plan.png, grid.png and animation.mp4 (or .gif); of a diffusion planner also denoising.png and schedule.png.

    played: what `planner` did. episodes: numbers of those drawn; the first gets the large picture.
    """
    if played.plan is None or not len(episodes):
        raise ValueError("pictures of plans need at least one episode that was planned")
    starts, goals = played.trajectory[:, 0], played.goals
    steps = played.rewards.shape[1]
    paths, ring = on_paper(maze, played.trajectory[..., :2]), reach(maze)
    others = fans(watched(planner, share_of(advance, 0.4)), starts[episodes], goals[episodes], steps)
    both = [on_paper(maze, np.concatenate([played.plan.states[e:e + 1, :, :2], other]))
            for e, other in zip(episodes, others, strict=True)]
    first, ends = episodes[0], on_paper(maze, goals)
    here = (paths[first, 0], ends[first])
    figure = plan_figure(maze.walls, both[0], paths[first], *here, title=f"{maze.name}: plans and the executed path",
                         reach=ring)
    if maze.frame != D4RL:  # there x and y are something else than rows and columns
        figure.axes[0].set(xlabel="column (cells)", ylabel="row (cells)")
    figure.savefig(media / "plan.png")
    advance(0.1)
    scores = [f"{int(played.returns[e])} of {steps} steps at the goal" for e in episodes]
    plan_grid(maze.walls, both, [paths[e] for e in episodes], paths[episodes, 0], ends[episodes], scores,
              reach=ring).savefig(media / "grid.png")
    advance(0.1)
    animation(maze.walls, both[0], paths[first], *here, media / "animation.mp4", reach=ring,
              advance=share_of(advance, 0.3))
    if isinstance(planner, DiffusionPlanner):
        _denoising(media, maze, planner, starts[first:first + 1], goals[first:first + 1], steps)
        matrix = planner.matrix(planner.tokens(steps))
        schedule_heatmap(matrix.numpy(), planner.schedule.levels).savefig(media / "schedule.png")


def _denoising(media: Path, maze: Maze, planner: DiffusionPlanner, start: np.ndarray, goal: np.ndarray,
               steps: int) -> None:
    (lo, _), estimates, labels = planner.layout["observation"], [], []
    rows = planner.matrix(planner.tokens(steps)).shape[0] - 1
    for row, (_, plan) in enumerate(planner.denoising(start, goal, steps)):
        estimates.append(plan[0, :, lo:lo + 2])
        labels.append(f"row {row + 1} of {rows}")
    begin, end = on_paper(maze, np.stack([start[0, :2], goal[0]]))
    strip = denoising_strip(maze.walls, on_paper(maze, np.stack(estimates)), begin, end, labels, reach=reach(maze))
    strip.savefig(media / "denoising.png")
