"""Pictures of an alignment benchmark: what a reward was paid for with."""

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dforce.report.plots import style
from dforce.report.plots.benchmark import MARKERS, Point

PANELS = {"accuracy": "class accuracy", "diversity": "diversity, share of the base",
          "kl": "KL to the base [nats]"}


class Mark(NamedTuple):
    """One method."""

    name: str
    small: bool  # a trial, drawn faint, in the colour of the method of its name
    values: dict[str, Point]  # "reward", and the metrics of PANELS that it has; x is unused


def frontier(marks: Sequence[Mark], *, reward: str, title: str = "") -> Figure:
    """Reward over accuracy, diversity and KL, a panel each, crosses being 95% intervals. reward: its unit.

    Right and up is better, but in the last panel, whose axis is turned for that. Raises ValueError without any mark.
    """
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
    if title:
        figure.suptitle(title, fontsize=style.TITLE, fontweight="bold", color=style.INK, x=0.01, ha="left")
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
