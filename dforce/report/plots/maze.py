"""Pictures of plans in a maze: one episode, several side by side, a plan emerging from noise, where the data are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dforce.report.plots import maze_axes, style
from dforce.report.plots.maze_axes import REACH, check_walls, draw_fan, draw_markers, draw_maze, draw_path, view


def legend_handles(*, candidates: bool, path: bool) -> list[Line2D]:
    """Proxy lines for the legend; candidates and path only where they are drawn."""
    look: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white"}
    handles = [Line2D([], [], marker="o", markersize=10, color=style.START, label="start", **look),
               Line2D([], [], marker="*", markersize=15, color=style.GOAL, label="goal", **look),
               Line2D([], [], color=style.TIME(0.45), linewidth=5, solid_capstyle="round", label="chosen plan")]
    if candidates:
        handles.append(Line2D([], [], color=style.TIME(0.45), linewidth=1.5, alpha=0.5, label="other plans"))
    if path:
        handles.append(Line2D([], [], color=style.INK, linewidth=1.6, label="executed"))
    return handles


def time_bar(figure: Figure, axes: Sequence[Axes], steps: int) -> None:
    """A slim colour bar beside `axes`: time within the plan, 0 to `steps` environment steps."""
    bar = figure.colorbar(ScalarMappable(Normalize(0, steps), style.TIME), ax=list(axes), shrink=0.6, aspect=28,
                          pad=0.02)
    style.plain_bar(bar, "time in plan (steps)")


def figure_for(walls: np.ndarray, *, width: float = 7.2) -> tuple[Figure, Axes]:
    """A figure whose height follows the maze, with room for title, colour bar and legend, and the maze drawn."""
    top, bottom, left, right = view(check_walls(walls))
    figure = style.new_figure(width, (width - 1.6) * (bottom - top) / (right - left) + 1.5)
    ax = figure.add_subplot()
    draw_maze(ax, walls, ticks=True)
    return figure, ax


def _draw_episode(ax: Axes, plans: object, path: object | None, start: object, goal: object, *, chosen: int = 0,
                  size: float = 1.0, reach: float = REACH) -> tuple[int, int]:
    """Fan, path and markers on a drawn maze, all checked; returns (P, H) of the plans."""
    fan, walk, begin, end = maze_axes.checked_episode(plans, path, start, goal, chosen)
    draw_fan(ax, fan, chosen=chosen, size=size)
    if walk is not None:
        draw_path(ax, walk, size=size)
    draw_markers(ax, begin, end, size=size, reach=reach)
    return len(fan), fan.shape[1]


def _legend(figure: Figure, handles: list[Line2D]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=style.LABEL,
                  labelcolor=style.INK)


def plan_figure(walls: np.ndarray, plans: object, path: object | None, start: object, goal: object, title: str = "", *,
                chosen: int = 0, reach: float = REACH) -> Figure:
    """One episode: a fan of candidate plans coloured by time, the chosen one, and what was executed.

    walls: bool [R, C]; plans: [P, H, 2] positions in metres; path: [H + 1, 2] or None; start, goal: [2].
    """
    figure, ax = figure_for(walls)
    count, steps = _draw_episode(ax, plans, path, start, goal, chosen=chosen, reach=reach)
    if title:
        ax.set_title(title, fontsize=style.TITLE, color=style.INK, loc="left", pad=10, fontweight="bold")
    time_bar(figure, [ax], steps)
    _legend(figure, legend_handles(candidates=count > 1, path=path is not None))
    return figure


def plan_grid(walls: np.ndarray, plans: Sequence[object], paths: Sequence[object | None], starts: object, goals: object,
              titles: Sequence[str] = (), *, columns: int = 4, reach: float = REACH) -> Figure:
    """Several episodes of one maze side by side, the plans' first being the chosen one.

    walls: bool [R, C]; plans: E arrays [P, H, 2]; paths: E arrays [H + 1, 2] or None; starts, goals: [E, 2].
    """
    begins = style.numbers("starts", starts, (len(plans), 2), "[E, 2] with one start for each entry of plans")
    ends = style.numbers("goals", goals, (len(plans), 2), "[E, 2] with one goal for each entry of plans")
    if len(plans) == 0 or len(paths) != len(plans) or len(titles) not in (0, len(plans)):
        raise ValueError(f"want as many paths and titles as plans, got {len(plans)}, {len(paths)}, {len(titles)}")
    top, bottom, left, right = view(check_walls(walls))
    across = min(columns, len(plans))
    down = -(-len(plans) // across)
    side = max(9.6 / across, 2.0)
    figure = style.new_figure(side * across + 0.9, (side * (bottom - top) / (right - left) + 0.25) * down + 0.4)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    size = float(np.clip(side / 6.0, 0.45, 1.0))
    several, length = False, 0
    for e, ax in enumerate(axes):
        if e >= len(plans):
            ax.set_visible(False)
            continue
        draw_maze(ax, walls)
        count, steps = _draw_episode(ax, plans[e], paths[e], begins[e], ends[e], size=size, reach=reach)
        several, length = several or count > 1, max(length, steps)
        if titles:
            ax.set_title(titles[e], fontsize=style.TICK, color=style.INK, loc="left", pad=4)
    time_bar(figure, list(axes[: len(plans)]), length)
    _legend(figure, legend_handles(candidates=several, path=any(path is not None for path in paths)))
    return figure


def denoising_strip(walls: np.ndarray, x0s: object, start: object, goal: object, labels: Sequence[str] = (), *,
                    columns: int = 6, reach: float = REACH) -> Figure:
    """A row of small mazes: the plan emerging from noise.

    walls: bool [R, C]; x0s: [S, H, 2] estimates of the clean plan, in order of denoising; start, goal: [2];
    labels: one a picture, or none. More than `columns` pictures are thinned evenly, keeping the first and the last.
    """
    estimates, _, begin, end = maze_axes.checked_episode(x0s, None, start, goal, 0)
    if len(labels) not in (0, len(estimates)):
        raise ValueError(f"labels must be one for each of the {len(estimates)} pictures, got {len(labels)}")
    top, bottom, left, right = view(check_walls(walls))
    shown = np.unique(np.linspace(0, len(estimates) - 1, min(columns, len(estimates))).round().astype(int))
    side = 10.8 / max(len(shown), 3)
    figure = style.new_figure(side * len(shown), side * (bottom - top) / (right - left) + (0.25 if labels else 0.0))
    size = float(np.clip(side / 4.5, 0.4, 1.0))
    for ax, s in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw_maze(ax, walls)
        ax.add_collection(maze_axes.timed_lines(estimates[s : s + 1], linewidths=3.6 * size, zorder=4,
                                                capstyle="round"))
        draw_markers(ax, begin, end, size=size, reach=reach)
        if labels:
            ax.set_title(labels[s], fontsize=style.TICK, color=style.INK, pad=4)
    return figure


def coverage(walls: np.ndarray, positions: object, title: str = "", *, bins: int = 12) -> Figure:
    """How often positions [N, 2] in metres visit each square, `bins` x `bins` of them a cell, on a log scale."""
    points = style.finite("positions", style.numbers("positions", positions, (None, 2), "[N, 2]"))
    if len(points) == 0:
        raise ValueError("positions is empty: there is nothing to count")
    rows, columns = check_walls(walls).shape
    (top, left), (bottom, right) = maze_axes.wall_corner(0, 0), maze_axes.wall_corner(rows, columns)
    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=(rows * bins, columns * bins),
                                  range=((top, bottom), (left, right)))
    figure, ax = figure_for(walls)
    seen = np.ma.masked_equal(counts, 0)  # an unvisited square stays white, or wall-coloured
    image = ax.imshow(seen, extent=(left, right, bottom, top), cmap="viridis_r",
                      norm=LogNorm(1, max(float(counts.max()), 2.0)), interpolation="nearest", zorder=2)
    bar = figure.colorbar(image, ax=ax, shrink=0.6, aspect=28, pad=0.02)
    style.plain_bar(bar, f"visits a square of {1 / bins:.2g} m (count)")
    bar.ax.minorticks_off()
    if title:
        ax.set_title(title, fontsize=style.TITLE, color=style.INK, loc="left", pad=10, fontweight="bold")
    return figure
