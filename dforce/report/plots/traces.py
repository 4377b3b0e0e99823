"""Numbers of one episode over time: a panel for each group of them."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dforce.report.plots import style

NAMED = len(style.PALETTE)  # lines of a panel that have a colour and a name of their own; further ones are grey


def traces(groups: Mapping[str, tuple[Sequence[str], np.ndarray]], *, dt: float | None = None,
           mark: tuple[str, int] | None = None) -> Figure:
    """One panel a group, over seconds (dt: of a step), or over steps where dt is None.

    groups: title -> names [W] and values [T, W] of its lines. mark: what to write at a dashed line, and its step.
    """
    if not groups:
        raise ValueError("traces draws at least one group of numbers, got none")
    heights = [1.9] * len(groups)
    figure = style.new_figure(13.5, 0.7 + sum(heights))
    axes = figure.subplots(len(groups), 1, sharex=True, squeeze=False)[:, 0]
    for ax, (title, (names, values)) in zip(axes, groups.items(), strict=True):
        rows = style.numbers(title, values, (None, len(names)), f"[T, {len(names)}]")
        style.plain_axes(ax, title=title, grid="y")
        time = np.arange(len(rows)) * (dt or 1)
        for i in reversed(range(len(names))):
            named = i < NAMED
            ax.plot(time, rows[:, i], color=style.PALETTE[i] if named else style.WALL, linewidth=1.6 if named else 1.0,
                    label=names[i] if named else None, zorder=3 if named else 2)
        if len(names) > 1:
            handles, labels = ax.get_legend_handles_labels()
            more = [f"and {len(names) - NAMED} more, grey"] if len(names) > NAMED else []
            ax.legend(handles[::-1], labels[::-1], frameon=False, fontsize=style.TICK, labelcolor=style.INK,
                      title=more[0] if more else None, loc="center left", bbox_to_anchor=(1.0, 0.5))
        if mark is not None:
            ax.axvline(mark[1] * (dt or 1), color=style.MUTED, linewidth=1.3, linestyle=(0, (5, 3)))
    if mark is not None:
        axes[0].annotate(mark[0], (mark[1] * (dt or 1), 1.0), xycoords=("data", "axes fraction"), fontsize=style.TICK,
                         color=style.INK, ha="center", va="bottom")
    axes[-1].set_xlabel("seconds" if dt else "step", fontsize=style.LABEL, color=style.INK)
    axes[-1].margins(x=0.01)
    return figure
