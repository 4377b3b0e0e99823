"""Curves, bars and heat maps of a run. Every function returns a matplotlib Figure; `figure.savefig(file)` writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dforce.report.plots import style
from dforce.report.rows import Row, filter_rows
from dforce.report.table import digits_for, line_key, line_labels, number

DOTS: dict[str, Any] = {"marker": "o", "markersize": 5.5, "markeredgecolor": "white"}
PURE, KEPT = "pure", "kept"  # names of `denoising_curves`
REFERENCE_LINE = 13  # points between the names of two references


def schedule_heatmap(matrix: object, K: int, title: str = "schedule matrix") -> Figure:
    """How noisy each token is at each sampling row. matrix: [M, T] levels in 0..K, 0 clean (white), K noise (dark)."""
    levels = style.finite("matrix",
                          style.numbers("matrix", matrix, (None, None), "[M, T]; draw one sequence of [M, B, T]"))
    if levels.size == 0 or levels.min() < 0 or levels.max() > K:
        span = f"{levels.min():g}..{levels.max():g}" if levels.size else "nothing"
        raise ValueError(f"matrix must hold levels in 0..{K}, got {span}; was it made for another schedule?")
    rows, tokens = levels.shape
    figure = style.new_figure(8.0, float(np.clip(2.0 + 5.2 * rows / max(tokens, 1), 3.6, 6.4)))
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="token (time in the sequence)", ylabel="sampling row")
    norm = Normalize(0, K)
    ax.imshow(levels, cmap=style.LEVEL, norm=norm, aspect="auto", interpolation="nearest")
    for side in ("top", "right"):
        ax.spines[side].set_visible(True)
    for spine in ax.spines.values():
        spine.set(color=style.GRID, linewidth=1.0)  # a rim, for the clean part is as white as the paper
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    bar = figure.colorbar(ScalarMappable(norm, style.LEVEL), ax=ax, aspect=26, pad=0.02)
    style.plain_bar(bar, f"noise level (0 clean, {K} pure noise)")
    bar.outline.set(visible=True, edgecolor=style.GRID)
    return figure


def loss_curve(steps: Sequence[float], train: Sequence[float | None], val_steps: Sequence[float] = (),
               val: Sequence[float | None] = (), bound: Sequence[float | None] = (), *, title: str = "training",
               ylabel: str = "loss") -> Figure:
    """Training loss (raw faint, running median strong) and held-out loss (points); below, held-out log-likelihood.

    steps, train: [N]; val_steps, val: [V]; bound: [V], nats a token, or () for no such panel. A value that is None or
    not finite leaves a gap. The losses' axis is logarithmic where they are positive and span more than a factor of two.
    """
    x, y = _pair("train", steps, train)
    held_x, held_y = _pair("val", val_steps, val)
    figure = style.new_figure(8.0, 7.0 if len(bound) else 4.4)
    heights = [5, 3] if len(bound) else [1]
    ax, *below = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    style.plain_axes(ax, title=title, xlabel="" if below else "training step", ylabel=ylabel, grid="y")
    ax.plot(x, y, color=style.PALETTE[0], alpha=0.30, linewidth=1.0)
    ax.plot(x, running_median(y), color=style.PALETTE[0], linewidth=2.2, label="training, running median")
    if len(held_x):
        ax.plot(held_x, held_y, color=style.PALETTE[1], linewidth=1.8, label="held out", **DOTS)
    every = np.concatenate([y, held_y])
    every = every[np.isfinite(every)]
    if len(every) and every.min() > 0 and every.max() > 2 * every.min():
        ax.set_yscale("log")
        plain_log_ticks(ax)
    ax.margins(x=0.02)
    ax.legend(frameon=False, fontsize=style.LABEL, labelcolor=style.INK, loc="upper right")
    for panel in below:
        _bound_panel(panel, *_pair("bound", val_steps, bound))
    return figure


def _bound_panel(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Nats a token over training steps; from thousands below, where a run begins, to tens, where it ends."""
    style.plain_axes(ax, xlabel="training step", ylabel="nats a token", grid="y")
    ax.set_title("lower bound of the held-out log-likelihood", fontsize=style.LABEL, color=style.INK, loc="left")
    ax.plot(x, y, color=style.PALETTE[1], linewidth=1.8, **DOTS)
    if np.isfinite(y).any() and np.nanmax(y) - np.nanmin(y) > 1000:
        ax.set_yscale("symlog", linthresh=100)
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _pair(name: str, steps: Sequence[float], values: Sequence[float | None]) -> tuple[np.ndarray, np.ndarray]:
    x = style.numbers(f"{name} steps", steps, (None,), "[N]")
    y = style.numbers(name, [np.nan if v is None else v for v in values], (len(x),), f"[N] = [{len(x)}], as its steps")
    return x, y


def running_median(y: np.ndarray) -> np.ndarray:
    """Median over a centred window of a twentieth of the curve, shortened at the ends; ignores what is not finite."""
    half = max(len(y) // 40, 1)
    kept = np.where(np.isfinite(y), y, np.nan)
    windows = [kept[max(i - half, 0) : i + half + 1] for i in range(len(y))]
    return np.array([np.nanmedian(w) if np.isfinite(w).any() else np.nan for w in windows])


def plain_log_ticks(ax: Axes) -> None:
    """Decades and a few values between, written as plain numbers."""
    low, high = ax.get_ylim()
    subs = [1.0] if high / low > 300 else [1.0, 2.0, 5.0] if high / low > 8 else [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0]
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="y", which="minor", length=0)


def denoising_curves(errors: Mapping[int, Mapping[str, float | None]], *, title: str = "error by noise") -> Figure:
    """One line a validation, early ones faint: root mean square error of the estimate over the noise it was given.

    errors: training step -> {noise std in data units, as text, or "pure": error; "kept": that of repeating the token
    before}, of `held_out_error`. Dashed, the noise itself: who leaves it has done nothing; dotted, "kept".
    """
    last = errors[[*errors][-1]] if errors else {}
    names = [name for name in last if name != KEPT]
    if not names:
        raise ValueError(f"denoising_curves draws errors of at least one validation, got {dict(errors)}")
    lines = {step: [np.nan if values.get(name) is None else float(values[name] or 0) for name in names]
             for step, values in errors.items()}
    kept = last.get(KEPT)
    shown = [value for line in (*lines.values(), [kept or np.nan]) for value in line if value > 0]  # NaN is not
    places, figure = np.arange(len(names)), style.new_figure(8.0, 4.4)
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="noise std over signal", ylabel="root mean square error", grid="y")
    for index, (step, line) in enumerate(lines.items()):
        now = index == len(lines) - 1
        look = {"linewidth": 2.2, **DOTS} if now else {"linewidth": 1.2, "alpha": 0.15 + 0.45 * index / len(lines)}
        ax.plot(places, line, color=style.PALETTE[0], label=f"step {step:,}" if now or not index else None, **look)
    noise = [np.nan if name == PURE else float(name) for name in names]
    ax.plot(places, noise, color=style.MUTED, linewidth=1.3, linestyle=(0, (5, 3)), label="the noise itself")
    if kept is not None:
        ax.axhline(kept, color=style.PALETTE[1], linewidth=1.3, linestyle=":", label="the token before, kept")
    if shown:
        ax.set_yscale("log")
        ax.set_ylim(0.7 * min(shown), 1.4 * max(shown))
        plain_log_ticks(ax)
    ax.set_xticks(places, ["pure noise" if name == PURE else name for name in names])
    ax.legend(frameon=False, fontsize=style.LABEL, labelcolor=style.INK, loc="best")
    return figure


def bars_with_intervals(rows: Sequence[Row], metric: str, *, references: Sequence[str] = (), by: str = "starts",
                        title: str = "") -> Figure:
    """Bars of one metric, methods downwards, one panel for each value of `variant[by]`, whiskers from low to high.

    references: methods drawn as dashed vertical lines through their own panel instead of bars (controller, straight).
    """
    chosen = filter_rows(rows, metric=metric)
    if not chosen:
        known = ", ".join(dict.fromkeys(row["metric"] for row in rows)) or "no rows at all"
        raise ValueError(f"no row has the metric {metric!r}; there are {known}")
    if len({row["task"] for row in chosen}) > 1:
        raise ValueError(f"bars_with_intervals draws one task, got {sorted({row['task'] for row in chosen})}")
    marks = [row for row in chosen if row["method"] in references]
    labels = line_labels([row for row in chosen if row["method"] not in references], across=(by,))
    if not labels:
        raise ValueError(f"all rows of {metric!r} are references: {list(references)}; nothing is left to draw as a bar")
    subsets = list(dict.fromkeys(row["variant"].get(by) for row in chosen))
    figure = style.new_figure(9.0, 1.5 + 0.46 * len(labels) + REFERENCE_LINE * len(references) / 72)
    axes = figure.subplots(1, len(subsets), sharey=True, sharex=True, squeeze=False)[0]
    most = max(sum(row["variant"].get(by) == subset for row in marks) for subset in subsets)
    for color, ax, subset in zip(np.resize(style.PALETTE[:3], len(axes)), axes, subsets, strict=True):
        here = [row for row in chosen if row["variant"].get(by) == subset]
        style.plain_axes(ax, xlabel=chosen[0]["unit"] or metric, grid="x")
        pad = 8 + REFERENCE_LINE * most
        ax.set_title(_panel_title(by, subset, here), fontsize=style.LABEL, color=style.INK, loc="left", pad=pad)
        _bars(ax, [row for row in here if row not in marks], list(labels), str(color), by)
        _reference_lines(ax, [row for row in here if row in marks])
    axes[0].set_yticks(range(len(labels)), list(labels.values()), fontsize=style.LABEL)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    style.heading(figure, title or metric)
    return figure


def _panel_title(by: str, subset: Any, rows: Sequence[Row]) -> str:
    counts = sorted({row["n"] for row in rows})
    count = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return count if subset is None else f"{by}: {subset} ({count})"


def _bars(ax: Axes, rows: Sequence[Row], order: Sequence[Any], color: str, by: str) -> None:
    """Bars with whiskers, and their numbers in a column at the right, where no line can cross them."""
    ax.tick_params(axis="y", length=0)
    ax.axvline(0, color=style.MUTED, linewidth=0.8)
    digits = digits_for(rows)
    aside: dict[str, Any] = {"xytext": (42, 0), "textcoords": "offset points", "va": "center", "ha": "right"}
    for row in rows:
        place, value = order.index(line_key(row, across=(by,))), row["value"]
        at: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "fontsize": style.LABEL, "color": style.INK}
        ax.annotate(number(value, digits), (1, place), **at, **aside)
        if value is None:
            continue
        low, high = (value if end is None else end for end in (row["low"], row["high"]))
        ax.barh(place, value, height=0.62, color=color, alpha=0.30)
        ax.plot([low, high], [place, place], color=color, linewidth=2.4, solid_capstyle="butt")
        ax.plot(value, place, "o", color=color, markersize=6.5, markeredgecolor="white")


def _reference_lines(ax: Axes, rows: Sequence[Row]) -> None:
    """Dashed lines, their names one above the other, so that near ones stay legible."""
    digits = digits_for(rows)
    marks = sorted((row["value"], row["method"]) for row in rows if row["value"] is not None)
    for level, (value, name) in enumerate(marks):
        ax.axvline(value, color=style.INK, linewidth=1.2, linestyle=(0, (4, 3)), zorder=3)
        text = f"{name} {number(value, digits)}"
        above: dict[str, Any] = {"xytext": (0, 4 + REFERENCE_LINE * level), "textcoords": "offset points",
                                 "ha": "center", "va": "bottom"}
        at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "fontsize": style.TICK, "color": style.INK}
        ax.annotate(text, (value, 1), **at, **above)
