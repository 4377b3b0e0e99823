"""Paired differences with their intervals, one under the other: which method is ahead of which, and is it settled?"""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dforce.report.plots import style
from dforce.report.rows import settled

GAP = 0.7  # lines between two comparisons of several series

Estimate = tuple[float, float, float]  # value, low, high
Panel = Mapping[str, Mapping[str, Estimate]]  # comparison -> series -> (difference, low, high)


def forest(panels: Mapping[str, Panel], *, xlabel: str, title: str = "") -> Figure:
    """A line an interval, comparisons downwards, a panel a subset; zero is a line through all of them.

    panels: title -> comparison -> series -> (difference, low, high); comparisons and series stand in the order in which
    they come first, a series has one colour throughout. Filled: the interval leaves zero out, as a line below says. A
    single series needs no name. ValueError without any difference, and for more series than there are colours.
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
    if title:
        figure.suptitle(title, fontsize=style.TITLE, fontweight="bold", color=style.INK, x=0.01, ha="left")
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
