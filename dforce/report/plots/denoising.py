"""Errors of a denoiser by noise, as training goes on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dforce.report.plots import style
from dforce.report.plots.curves import DOTS, plain_log_ticks

PURE, KEPT = "pure", "kept"


def denoising_curves(errors: Mapping[int, Mapping[str, float | None]], *, title: str = "error by noise") -> Figure:
    """One line a validation, early ones faint: root mean square error of the estimate over the noise it was given.

    errors: training step -> {noise std in data units, as text, or "pure": error; "kept": that of repeating the token
    before}, as `dforce.train.validation.held_out_error` makes it. Dashed, the noise itself: who leaves it
    has done nothing; dotted, what repeating the token before errs by, where it is known. ValueError where there is
    nothing to draw.
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
