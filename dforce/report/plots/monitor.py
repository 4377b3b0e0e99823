"""Curves of a tuning run: its reward and what became of everything else, against the rewards asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from dforce.report.plots import style
from dforce.report.statistics import ERROR

PANELS = {  # measure: (title, unit)
    "reward": ("reward", "tuned on"),
    "held_out": ("held-out reward", "never tuned on"),
    "class_accuracy": ("class accuracy", "share seen as their class"),
    "diversity": ("diversity", "squared distance within a class"),
    "success": ("success", "share"),
    "kl": ("KL to the model begun with", "nats of a run"),
}
ACROSS = 3


def watch_curves(looks: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """One panel a measure, over the number of reward queries; the dashed line is the model begun with.

    looks: in order, each with "queries" and measures, alike in all; "<measure>_error" is a band around it.
    Raises ValueError without a look.
    """
    if not looks:
        raise ValueError("there is nothing to draw: no look was taken; watch_every is how often")
    names = [name for name in [*PANELS, *looks[0]] if name in looks[0] and name != "queries"]
    names = [name for name in dict.fromkeys(names)
             if not (name.endswith(ERROR) and name.removesuffix(ERROR) in names)]
    rows = math.ceil(len(names) / ACROSS)
    across = min(ACROSS, len(names))
    figure = style.new_figure(3.6 * across, 2.7 * rows + 0.5)
    axes = figure.subplots(rows, across, squeeze=False, sharex=True).flatten()
    queries = [look["queries"] for look in looks]
    for ax, name in zip(axes, names, strict=False):
        heading, unit = PANELS.get(name, (name.replace("_", " "), ""))
        values = [look.get(name, math.nan) for look in looks]
        style.plain_axes(ax, xlabel="reward queries", ylabel=unit, grid="y")
        ax.set_title(heading, fontsize=style.LABEL, color=style.INK, loc="left")
        ax.axhline(values[0], color=style.MUTED, linewidth=1.0, linestyle=(0, (4, 3)))
        if name + ERROR in looks[0]:
            half = [look.get(name + ERROR, math.nan) for look in looks]
            low, high = zip(*((value - off, value + off) for value, off in zip(values, half, strict=True)), strict=True)
            ax.fill_between(queries, low, high, color=style.PALETTE[0], alpha=0.18, linewidth=0)
        ax.plot(queries, values, color=style.PALETTE[0], linewidth=2.0, marker="o", markersize=4)
        ax.margins(x=0.03, y=0.15)
    for ax in axes[len(names):]:
        ax.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=style.TITLE, fontweight="bold", color=style.INK, x=0.01, ha="left")
    return figure
