"""Curves of tuning runs: their reward and what became of everything else, against the rewards asked for."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
PLANNER_PANELS = (("watched_return", "return (steps at the goal)"), ("watched_success", "success (fraction)"),
                  ("watched_kl", "KL to the base (nats of a plan)"))
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


def tuning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Return, success and KL against plans driven. runs: "<algorithm>-<seed>" -> its lines, one an epoch.

    Runs of an algorithm share a colour; their mean is drawn strong where they were looked at after as many plans.
    A line holds "queries" and, where the policy was looked at, "watched_return", "watched_success" and "watched_kl".
    """
    names = list(dict.fromkeys(run.rpartition("-")[0] for run in runs))
    if not 0 < len(names) <= len(style.PALETTE):
        raise ValueError(f"tuning_curves shows 1 to {len(style.PALETTE)} algorithms, got {len(names)}: {names}")
    figure = style.new_figure(11.0, 3.6)
    axes = figure.subplots(1, len(PLANNER_PANELS))
    for ax, (metric, label) in zip(axes, PLANNER_PANELS, strict=True):
        style.plain_axes(ax, xlabel="plans driven", ylabel=label, grid="y")
        for color, name in zip(style.PALETTE, names, strict=False):
            seen: dict[int, list[float]] = {}
            for run, lines in runs.items():
                if run.rpartition("-")[0] != name:
                    continue
                points = [(line["queries"], line[metric]) for line in lines if metric in line]
                ax.plot(*np.array(points, dtype=float).reshape(-1, 2).T, color=color, linewidth=1.0, alpha=0.45)
                for x, y in points:
                    seen.setdefault(x, []).append(y)
            most = max(map(len, seen.values()), default=0)
            mean = sorted((x, float(np.mean(y))) for x, y in seen.items() if len(y) == most)
            ax.plot(*np.array(mean, dtype=float).reshape(-1, 2).T, color=color, linewidth=2.4, label=name)
        ax.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=style.LABEL, labelcolor=style.INK, loc="best")
    return figure
