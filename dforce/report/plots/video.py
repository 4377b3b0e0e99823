"""Pictures of rollouts: how the statistics of frames drift away from those of real video."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from dforce.report.plots import style

NAMES = {"brightness": "brightness (0 black, 1 white)", "contrast": "contrast (std of pixels)",
         "detail": "detail (mean |Laplacian|)", "change": "change from frame to frame",
         "saturated": "part of pixels at black or white", "frechet": "Frechet distance from real video"}


def drift_panels(frames: Sequence[float], values: Mapping[str, np.ndarray], real: Mapping[str, tuple[float, float]], *,
                 title: str = "drift") -> Figure:
    """One panel a statistic over the frame index: every rollout faint, their mean strong, real video a grey band.

    frames: [n] middles of the windows; values: name -> [B, n]; real: name -> (low, high) of real windows.
    Raises ValueError where there is nothing to draw, or sizes differ.
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
    figure.suptitle(title, fontsize=style.TITLE, color=style.INK, x=0.01, ha="left", fontweight="bold")
    return figure
