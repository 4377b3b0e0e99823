"""Pictures of tuning runs, of a learnt reward, and of how rollouts drift away from real video."""

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
    "unseen_reward": ("reward, other prompts", "never tuned on"),
    "unseen_kl": ("KL, other prompts", "nats of a run"),
}
PLANNER_PANELS = (("watched_return", "return (steps at the goal)"), ("watched_success", "success (fraction)"),
                  ("watched_kl", "KL to the base (nats of a plan)"))
ACROSS = 3
BINS = 24
NAMES = {"brightness": "brightness (0 black, 1 white)", "contrast": "contrast (std of pixels)",
         "detail": "detail (mean |Laplacian|)", "change": "change from frame to frame",
         "saturated": "part of pixels at black or white", "frechet": "Frechet distance from real video"}


def watch_curves(looks: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """One panel a measure, over the number of reward queries; the dashed line is the model begun with.

    looks: in order, each with "queries" and measures, alike in all; "<measure>_error" is a band around it.
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
    style.heading(figure, title)
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


def margins_plot(held_out: object, learnt: object = (), *, title: str = "preference pairs") -> Figure:
    """Share of the pairs by reward(preferred) - reward(other): right of 0 the reward agrees. [H], [P] in nats."""
    held = style.finite("held_out", style.numbers("held_out", held_out, (None,), "[H]"))
    known = style.finite("learnt", style.numbers("learnt", learnt, (None,), "[P]"))
    if not len(held):
        raise ValueError("there is no held-out pair to draw")
    every = np.concatenate([held, known, [0.0]])
    edges = np.linspace(every.min(), every.max() if every.max() > every.min() else every.min() + 1, BINS + 1)
    figure = style.new_figure(8.0, 4.2)
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="reward of the preferred less that of the other [nats]",
                     ylabel="share of the pairs", grid="y")
    for values, name, color in ((known, "learnt from", style.PALETTE[5]), (held, "held out", style.PALETTE[0])):
        if len(values):
            share = np.histogram(values, edges)[0] / len(values)
            label = f"{name}: {np.mean(values > 0):.1%} of {len(values)} right"
            ax.stairs(share, edges, fill=name == "learnt from", alpha=0.4 if name == "learnt from" else 1.0,
                      color=color, linewidth=2.2, label=label)
    ax.axvline(0, color=style.INK, linewidth=1.2, linestyle=(0, (4, 3)))
    ax.legend(frameon=False, fontsize=style.LABEL, labelcolor=style.INK, loc="upper right")
    return figure


def ratings_plot(predicted: object, rated: object, *, title: str = "held-out ratings") -> Figure:
    """One dot a sample: what it was rated, [H], and what the reward expects, [H]."""
    x = style.finite("rated", style.numbers("rated", rated, (None,), "[H]"))
    y = style.finite("predicted", style.numbers("predicted", predicted, (len(x),), f"[{len(x)}], as rated"))
    figure = style.new_figure(5.6, 5.2)
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="mean rating", ylabel="expected by the reward", grid="both")
    both = np.concatenate([x, y])
    ax.plot([both.min(), both.max()], [both.min(), both.max()], color=style.MUTED, linewidth=1.2, linestyle=(0, (5, 3)))
    ax.plot(x, y, "o", color=style.PALETTE[0], alpha=0.55, markersize=5.5, markeredgecolor="white")
    return figure


def drift_panels(frames: Sequence[float], values: Mapping[str, np.ndarray], real: Mapping[str, tuple[float, float]], *,
                 title: str = "drift") -> Figure:
    """One panel a statistic over the frame index: every rollout faint, their mean strong, real video a grey band.

    frames: [n] middles of the windows; values: name -> [B, n]; real: name -> (low, high) of real windows.
    """
    if not values or not len(frames):
        raise ValueError("there are no windows to draw: was the rollout shorter than one?")
    columns = min(3, len(values))
    rows = -(-len(values) // columns)
    figure = style.new_figure(4.0 * columns, 0.5 + 2.6 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    x = style.numbers("frames", frames, (None,), "[n]")
    for ax, (name, each) in zip(axes, values.items(), strict=False):
        y = style.numbers(name, each, (None, len(x)), f"[B, n] with n = {len(x)}")
        style.plain_axes(ax, xlabel="frame", grid="y")
        ax.set_title(NAMES.get(name, name), fontsize=style.LABEL, color=style.INK, loc="left")
        if name in real:
            ax.axhspan(*real[name], color=style.GRID, zorder=0, label="95% of real windows")
        ax.plot(x, y.T, color=style.PALETTE[0], alpha=0.25, linewidth=0.9)
        ax.plot(x, np.nanmean(y, 0), color=style.PALETTE[0], linewidth=2.2, label="rollouts, mean")
        ax.margins(x=0.02)
    for ax in axes[len(values):]:
        ax.remove()
    axes[0].legend(frameon=False, fontsize=style.TICK, labelcolor=style.INK)
    style.heading(figure, title)
    return figure
