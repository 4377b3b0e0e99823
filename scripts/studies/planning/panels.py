"""Pictures of studies: several quantities over the same few settings, and paths on a plane by what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dforce.report.plots import style
from dforce.report.plots.benchmark import Estimate
from dforce.report.rows import Row, filter_rows

LINES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")


def panels_of(rows: Sequence[Row], key: str, wanted: Mapping[str, tuple[str, Mapping[str, Any]]],
              ) -> tuple[list[Any], dict[str, dict[str, list[Estimate | None]]]]:
    """What `line_panels` draws: the sorted values that `key` has in the rows' variants, and the panels over them.

    wanted: title of a panel -> (metric, what the variants of its rows hold); every method is a series. Rows without
    `key` (differences) are not drawn.
    """
    rows = [row for row in rows if key in row["variant"]]
    settings = sorted({row["variant"][key] for row in rows})
    panels: dict[str, dict[str, list[Estimate | None]]] = {}
    for title, (metric, variant) in wanted.items():
        for method in dict.fromkeys(row["method"] for row in rows):
            intervals: dict[Any, Any] = {
                row["variant"][key]: (row["value"], row["low"], row["high"])
                for row in filter_rows(rows, method=method, metric=metric, variant=variant)}
            panels.setdefault(title, {})[method] = [intervals.get(setting) for setting in settings]
    return settings, panels


def line_panels(settings: Sequence[str], panels: Mapping[str, Mapping[str, Sequence[Estimate | None]]], *,
                xlabel: str, columns: int = 3, group: int = len(style.PALETTE)) -> Figure:
    """A panel a quantity, in rows of `columns`, over the same `settings`, which are names, evenly spaced.

    panels: quantity -> series -> one (value, low, high) a setting, None where there is none. A series looks the same
    in all panels, and its intervals are drawn as bars. group: so many series one after the other share a line style,
    each with a colour of its own, which comes again in the next group.
    """
    if not panels or not settings:
        raise ValueError(f"nothing to draw: {len(panels)} panels over {len(settings)} settings")
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    looks = {name: (style.PALETTE[n % group], LINES[n // group]) for n, name in enumerate(names[:group * len(LINES)])}
    if len(looks) < len(names) or group > len(style.PALETTE):
        raise ValueError(f"line_panels shows up to {len(LINES)} groups of up to {len(style.PALETTE)} series, got "
                         f"{len(names)} series in groups of {group}: {names}")
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    figure = style.new_figure(4.1 * across, 3.1 * down + 0.4)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes[len(panels):]:
        ax.set_visible(False)
    for number, (ax, (quantity, series)) in enumerate(zip(axes, panels.items(), strict=False)):
        below = number + across >= len(panels)  # nothing of the kind stands under it
        style.plain_axes(ax, title=quantity, xlabel=xlabel if below else "", grid="y")
        ax.set_xticks(range(len(settings)), settings)
        for name, estimates in series.items():
            if len(estimates) != len(settings):
                raise ValueError(f"{quantity}, {name}: {len(estimates)} estimates for {len(settings)} settings")
            shift = 0.06 * (names.index(name) - (len(names) - 1) / 2)
            _line(ax, estimates, *looks[name], shift=shift)
    handles = [Line2D([], [], color=color, linestyle=line, marker="o", linewidth=2.2, label=name)
               for name, (color, line) in looks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(names), 4), frameon=False,
                  fontsize=style.LABEL, labelcolor=style.INK)
    return figure


def _line(ax: Axes, estimates: Sequence[Estimate | None], color: str, line: str, *, shift: float) -> None:
    there = [(place, *estimate) for place, estimate in enumerate(estimates) if estimate is not None]
    if not there:
        return
    place, value, low, high = np.array(there, dtype=float).T
    ax.vlines(place + shift, low, high, color=color, linewidth=1.6, alpha=0.55)
    ax.plot(place + shift, value, color=color, linestyle=line, linewidth=2.2, marker="o", markersize=6,
            markeredgecolor="white")


def path_panels(panels: Mapping[str, tuple[object, Sequence[str]]], colors: Mapping[str, str], *,
                notes: Mapping[str, str] | None = None) -> Figure:
    """Paths on a plane, a panel a collection: panels: name -> (paths [N, T, 2], the kind of each).

    colors: kind -> colour; kinds are drawn in that order, the last on top. notes: panel name -> a line under its title.
    """
    figure = style.new_figure(4.1 * len(panels), 5.0)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (name, (paths, kinds)) in zip(axes, panels.items(), strict=True):
        points = style.numbers(f"paths of {name!r}", paths, (None, None, 2), "[N, T, 2]")
        if len(kinds) != len(points) or set(kinds) - set(colors):
            raise ValueError(f"{name}: want one of the kinds {sorted(colors)} for each of {len(points)} paths, got "
                             f"{len(kinds)} of {sorted(set(kinds))}")
        for kind, color in colors.items():
            of_kind = points[[each == kind for each in kinds]]
            ax.add_collection(LineCollection(list(of_kind), colors=color, linewidths=1.3, alpha=0.45, zorder=2,
                                             capstyle="round"))
        ax.scatter(*points[:, 0].T, s=9, color=style.INK, zorder=3, linewidths=0)
        ax.set_title(name, fontsize=style.TITLE, color=style.INK, loc="left", pad=26, fontweight="bold")
        ax.annotate((notes or {}).get(name, ""), (0, 1), xytext=(0, 6), xycoords="axes fraction",
                    textcoords="offset points", fontsize=style.LABEL, color=style.MUTED)
        ax.set(aspect="equal", xticks=[], yticks=[])
        ax.margins(0.06)
        ax.autoscale_view()
        for side in ax.spines.values():
            side.set_color(style.GRID)
    handles = [Line2D([], [], color=color, linewidth=3, label=kind) for kind, color in colors.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=style.LABEL,
                  labelcolor=style.INK)
    return figure
