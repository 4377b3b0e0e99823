"""Pictures of benchmarks: scores over a setting, all methods on the same starts, what a reward was paid for with."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from dforce.report.plots import style
from dforce.report.plots.maze_axes import check_walls, draw_fan, draw_markers, draw_maze, draw_path, view
from dforce.report.rows import settled

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
BLOCK = 8  # methods under one another before a second block begins at their right
PANELS = {"accuracy": "class accuracy", "diversity": "diversity, share of the base",
          "kl": "KL to the base [nats]"}
GAP = 0.7  # lines between two comparisons of several series

Estimate = tuple[float, float, float]  # value, low, high
Panel = Mapping[str, Mapping[str, Estimate]]  # comparison -> series -> (difference, low, high)


class Point(NamedTuple):
    """One number of a curve: value at x, with its interval (None where there is none)."""

    x: float
    value: float
    low: float | None = None
    high: float | None = None


class Paths(NamedTuple):
    """What a method did from E starts."""

    path: np.ndarray         # [E, H + 1, 2]
    plan: np.ndarray | None  # [E, P, 2]
    notes: Sequence[str]     # one an episode


def sweep_panels(panels: Mapping[str, Mapping[str, Sequence[Point]]], *, xlabel: str, ylabel: str, title: str = "",
                 log_x: bool = False, references: Mapping[str, Mapping[str, float]] | None = None) -> Figure:
    """Curves over a setting, a panel a quantity, one legend for all at the right.

    panels: title -> series -> points, in any order; a series of one point is a point. references: panel -> name ->
    value, dashed lines across. Any number of series: colours come again with another marker.
    """
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    if not names:
        raise ValueError("nothing to draw: no series in any of the panels")
    figure = style.new_figure(3.9 * len(panels) + 2.6, max(4.0, 1.4 + 0.24 * len(names)))
    axes = figure.subplots(1, len(panels), sharey=True, sharex=True, squeeze=False)[0]
    for number, (ax, (panel, series)) in enumerate(zip(axes, panels.items(), strict=True)):
        style.plain_axes(ax, title=panel, xlabel=xlabel, ylabel="" if number else ylabel, grid="y")
        for name, points in series.items():
            _curve(ax, sorted(points), name, names.index(name))
        for place, (name, level) in enumerate((references or {}).get(panel, {}).items()):
            ax.axhline(level, color=style.MUTED, linewidth=1.3, linestyle=(0, (5, 3)), zorder=1)
            side: Any = ("left", "right")[place % 2]  # near ones stay legible
            ax.annotate(name, (0.01 if side == "left" else 0.99, level), xycoords=("axes fraction", "data"),
                        xytext=(0, 3), textcoords="offset points", ha=side, color=style.MUTED, fontsize=style.TICK)
        if log_x:
            _log_ticks(ax, [p.x for each in panels.values() for points in each.values() for p in points])
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[name] for name in names], names, loc="outside right center", frameon=False,
                  fontsize=style.TICK, labelcolor=style.INK)
    style.heading(figure, title)
    return figure


def _curve(ax: Axes, points: Sequence[Point], name: str, number: int) -> None:
    color = style.PALETTE[number % len(style.PALETTE)]
    marker = MARKERS[number // len(style.PALETTE) % len(MARKERS)]
    ax.plot([p.x for p in points], [p.value for p in points], color=color, linewidth=2.0, marker=marker, markersize=6.5,
            markeredgecolor="white", label=name, zorder=4)
    for p in points:
        if p.low is not None and p.high is not None:
            ax.plot([p.x, p.x], [p.low, p.high], color=color, linewidth=1.4, alpha=0.55, zorder=3)


def _log_ticks(ax: Axes, values: Sequence[float]) -> None:
    """Logarithmic, with ticks at the settings themselves where they are few, a few a decade elsewhere."""
    ax.set_xscale("log")
    few = sorted(set(values))
    if len(few) > 5:
        low, high = np.log10(few[0]), np.log10(few[-1])
        steps = (1, 2, 5) if high - low < 1.2 else (1, 3) if high - low < 2.4 else (1,)
        grid = [m * 10.0**e for e in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in steps]
        few = [tick for tick in grid if few[0] / 1.5 <= tick <= few[-1] * 1.5]
    ax.set_xticks(few)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="x", which="minor", length=0)


def same_starts(walls: np.ndarray, seen: Mapping[str, Paths], starts: np.ndarray, goals: np.ndarray, *,
                title: str = "", reach: float = 0.5) -> Figure:
    """Every method on the same starts: a line a method, a column a start; plans coloured by time, paths dark.

    walls: bool [R, C]; starts, goals: [E, 2]; reach: radius of the disc around a goal in which the reward is 1.
    """
    count, top = len(starts), view(check_walls(walls))
    if not seen or not count:
        raise ValueError(f"nothing to draw: {len(seen)} methods on {count} starts")
    blocks = -(-len(seen) // BLOCK)
    down = -(-len(seen) // blocks)
    ratio = (top[1] - top[0]) / (top[3] - top[2])
    figure = style.new_figure(1.45 * count * blocks + 0.4, (1.3 * ratio + 0.34) * down + 0.5)
    figure.set_layout_engine("constrained", h_pad=0.14)
    grid = figure.add_gridspec(down, blocks, wspace=0.06)
    for number, (name, one) in enumerate(seen.items()):
        axes = grid[number % down, number // down].subgridspec(1, count, wspace=0.03).subplots(squeeze=False)[0]
        # A title counts as part of its panel, and a long one would push the panels of its line apart.
        axes[0].annotate(name, (0, 1), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points",
                         fontsize=style.TICK, color=style.INK, fontweight="bold").set_in_layout(False)
        for e, ax in enumerate(axes):
            _episode(ax, walls, one, e, starts[e], goals[e], reach)
    style.heading(figure, title)
    return figure


def _episode(ax: Axes, walls: np.ndarray, seen: Paths, e: int, start: np.ndarray, goal: np.ndarray,
             reach: float) -> None:
    look: dict[str, Any] = {"size": 0.45}
    draw_maze(ax, walls)
    if seen.plan is not None:
        draw_fan(ax, seen.plan[e:e + 1], **look)
    draw_path(ax, seen.path[e], **look)
    draw_markers(ax, start, goal, reach=reach, **look)
    ax.set_xlabel(seen.notes[e], fontsize=style.TICK - 2, color=style.MUTED, labelpad=2)


class Mark(NamedTuple):
    """One method."""

    name: str
    small: bool  # a trial, drawn faint, in the colour of the method of its name
    values: dict[str, Point]  # "reward", and the metrics of PANELS that it has; x is unused


def frontier(marks: Sequence[Mark], *, reward: str, title: str = "") -> Figure:
    """Reward (its unit) over accuracy, diversity and KL, a panel each, crosses being 95% intervals."""
    marks = [mark for mark in marks if "reward" in mark.values]
    names = list(dict.fromkeys(mark.name for mark in marks))
    if not names:
        raise ValueError("nothing to draw: no method with a reward")
    figure = style.new_figure(3.9 * len(PANELS) + 2.6, max(4.2, 1.2 + 0.26 * len(names)))
    axes = figure.subplots(1, len(PANELS), sharey=True, squeeze=False)[0]
    for number, (ax, (metric, label)) in enumerate(zip(axes, PANELS.items(), strict=True)):
        style.plain_axes(ax, xlabel=label, ylabel="" if number else reward, grid="both")
        if metric == "kl":
            ax.set_xscale("symlog", linthresh=1.0)
            ax.invert_xaxis()
        for mark in marks:
            if metric in mark.values:
                _mark(ax, mark.values[metric], mark.values["reward"], names.index(mark.name), mark)
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    shown = [name for name in names if name in handles]
    figure.legend([handles[name] for name in shown], shown, loc="outside right center", frameon=False,
                  fontsize=style.TICK, labelcolor=style.INK)
    style.heading(figure, title)
    return figure


def _mark(ax: Axes, across: Point, up: Point, number: int, mark: Mark) -> None:
    color = style.PALETTE[number % len(style.PALETTE)]
    shape = MARKERS[number // len(style.PALETTE) % len(MARKERS)]
    if mark.small:
        ax.plot([across.value], [up.value], marker=shape, color=color, markersize=3.5, alpha=0.35, linewidth=0)
        return
    if across.low is not None and across.high is not None:
        ax.plot([across.low, across.high], [up.value, up.value], color=color, linewidth=1.4, alpha=0.55, zorder=3)
    if up.low is not None and up.high is not None:
        ax.plot([across.value, across.value], [up.low, up.high], color=color, linewidth=1.4, alpha=0.55, zorder=3)
    ax.plot([across.value], [up.value], marker=shape, color=color, markersize=8, markeredgecolor="white", linewidth=0,
            label=mark.name, zorder=4)


def forest(panels: Mapping[str, Panel], *, xlabel: str, title: str = "") -> Figure:
    """A line an interval, comparisons downwards, a panel a subset; zero is a line through all of them.

    panels: title -> comparison -> series -> (difference, low, high), in the order in which they come first. Filled: the
    interval leaves zero out, as a line below says. A single series needs no name.
    """
    names = list(dict.fromkeys(name for panel in panels.values() for series in panel.values() for name in series))
    if not names:
        raise ValueError("nothing to draw: no difference in any of the panels")
    if len(names) > len(style.PALETTE):
        raise ValueError(f"forest shows up to {len(style.PALETTE)} series, got {len(names)}: {names}")
    places, middles, end = _places(panels, names)
    figure = style.new_figure(3.7 * len(panels) + 2.6, max(2.2, 1.3 + 0.2 * end))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (panel, comparisons) in zip(axes, panels.items(), strict=True):
        style.plain_axes(ax, title=panel, xlabel=xlabel, grid="x")
        ax.tick_params(axis="y", length=0)
        ax.axvline(0, color=style.INK, linewidth=1.0, zorder=2)
        for comparison, series in comparisons.items():
            for name, estimate in series.items():
                _line(ax, estimate, places[comparison, name], style.PALETTE[names.index(name)])
    axes[0].set_yticks(list(middles.values()), list(middles), fontsize=style.TICK)
    axes[0].set_ylim(end - 0.5, -0.9)
    if len(names) > 1:
        handles = [Line2D([], [], color=color, marker="o", markersize=6.5, linewidth=2.2)
                   for color in style.PALETTE[:len(names)]]
        figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=style.TICK,
                      labelcolor=style.INK)
    figure.supxlabel("filled: the 95% interval leaves zero out", fontsize=style.TICK, color=style.MUTED, x=0.99,
                     ha="right")
    style.heading(figure, title)
    return figure


def _places(panels: Mapping[str, Panel], names: list[str]) -> tuple[dict[tuple[str, str], float], dict[str, float],
                                                                    float]:
    """The height of every line by (comparison, series), of every comparison's name, and where all end."""
    places: dict[tuple[str, str], float] = {}
    middles: dict[str, float] = {}
    end = 0.0
    for comparison in dict.fromkeys(name for panel in panels.values() for name in panel):
        there = [name for name in names if any(name in panel.get(comparison, {}) for panel in panels.values())]
        places |= {(comparison, name): end + line for line, name in enumerate(there)}
        middles[comparison] = end + (len(there) - 1) / 2
        end += len(there) + (GAP if len(names) > 1 else 0.0)
    return places, middles, end


def _line(ax: Axes, estimate: Estimate, height: float, color: str) -> None:
    value, low, high = estimate
    ax.plot([low, high], [height, height], color=color, linewidth=2.2, solid_capstyle="butt", zorder=3)
    ax.plot(value, height, "o", color=color, markersize=6.5, markerfacecolor=color if settled(low, high) else "white",
            markeredgecolor=color, zorder=4)
