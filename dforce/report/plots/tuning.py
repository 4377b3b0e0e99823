"""Curves of tuning runs: what they gain, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dforce.report.plots import style

PANELS = (("watched_return", "return (steps at the goal)"), ("watched_success", "success (fraction)"),
          ("watched_kl", "KL to the base (nats of a plan)"))


def tuning_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Return, success and KL against plans driven. runs: "<algorithm>-<seed>" -> its lines, one an epoch.

    Runs of an algorithm share a colour; their mean is drawn strong where they were looked at after as many plans.
    A line holds "queries" and, where the policy was looked at, "watched_return", "watched_success" and "watched_kl".
    """
    names = list(dict.fromkeys(run.rpartition("-")[0] for run in runs))
    if not 0 < len(names) <= len(style.PALETTE):
        raise ValueError(f"tuning_curves shows 1 to {len(style.PALETTE)} algorithms, got {len(names)}: {names}")
    figure = style.new_figure(11.0, 3.6)
    axes = figure.subplots(1, len(PANELS))
    for ax, (metric, label) in zip(axes, PANELS, strict=True):
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
