"""One table, and one picture, of several runs that differ in the seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dforce.report.plots import style
from dforce.report.rows import Row


def same(row: Row) -> str:
    """A key that is equal for rows of different runs with the same method, variant and metric."""
    return json.dumps([row["method"], row["variant"], row["metric"]], sort_keys=True)


def over_seeds(runs: Iterable[Iterable[Row]]) -> Iterator[Row]:
    """One row for those that say the same in several runs, a run a seed: their mean, and its 95% t interval between the
    seeds; n is their sum. A row that one run alone has, or gives a value, keeps its own interval."""
    from scipy.stats import t

    groups: dict[str, list[Row]] = {}
    for run in runs:
        for row in run:
            groups.setdefault(same(row), []).append(row)
    for group in groups.values():
        values = np.array([row["value"] for row in group if row["value"] is not None])
        if len(values) < 2:
            yield next((row for row in group if row["value"] is not None), group[0])
            continue
        mean = float(values.mean())
        half = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)
        yield group[0] | {"value": mean, "low": mean - half, "high": mean + half, "n": sum(row["n"] for row in group),
                          "seeds": len(values)}


def methods_over_time(frames: Sequence[float], values: Mapping[str, np.ndarray], *, ylabel: str,
                      title: str = "") -> Figure:
    """One line a method with the spread of its runs: values name -> [R, n] at frames [n]."""
    if not values or not len(frames):
        raise ValueError("there is no method to draw")
    figure = style.new_figure(7.6, 4.4)
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="frame", ylabel=ylabel, grid="y")
    x = style.numbers("frames", frames, (None,), "[n]")
    for color, (name, each) in zip(style.PALETTE * 3, values.items(), strict=False):
        y = style.numbers(name, each, (None, len(x)), f"[R, n] with n = {len(x)}")
        ax.plot(x, np.nanmean(y, 0), color=color, linewidth=2.0, label=name)
        ax.fill_between(x, np.nanmin(y, 0), np.nanmax(y, 0), color=color, alpha=0.15, linewidth=0)
    ax.margins(x=0.02)
    ax.legend(frameon=False, fontsize=style.TICK, labelcolor=style.INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
