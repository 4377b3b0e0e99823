"""Grids of images: sets side by side, a class a row."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from dforce.images.model import pixels
from dforce.report.plots import style

CELL, GAP = 0.42, 0.06  # inches of an image, and of the gap between two as a share of an image


def side_by_side(sets: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str], *, per_class: int = 8,
                 title: str = "") -> Figure:
    """One panel a set, one row a class, its first `per_class` images. sets: name -> [N, 1, C, H, W]; labels: [N]."""
    if not sets or any(len(x) != len(labels) for x in sets.values()):
        sizes = {name: len(x) for name, x in sets.items()}
        raise ValueError(f"every set needs one image for each of the {len(labels)} labels, got {sizes}")
    shown = [int(label) for label in labels.unique()]
    rows = [(labels == label).nonzero().flatten()[:per_class] for label in shown]
    across = max(map(len, rows))
    figure = style.new_figure(1.2 + len(sets) * (across * CELL + 0.25), 0.9 + len(rows) * CELL)
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for ax, (name, x) in zip(axes, sets.items(), strict=True):
        ax.imshow(_mosaic(pixels(x), rows, across), interpolation="nearest")
        ax.set_title(name, fontsize=style.LABEL, color=style.INK, loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    height = x.shape[-2]
    axes[0].set_yticks([row * (height + _gap(height)) + height / 2 for row in range(len(rows))],
                       [classes[label] for label in shown], fontsize=style.TICK, color=style.INK)
    axes[0].tick_params(axis="y", length=0)
    style.heading(figure, title)
    return figure


def _gap(height: int) -> int:
    """Pixels between images of this height."""
    return max(1, round(GAP * height))


def _mosaic(images: np.ndarray, rows: Sequence[Tensor], across: int) -> np.ndarray:
    """[N, H, W, C] uint8 -> one picture, white between and where a class has too few."""
    height, width, channels = images.shape[1:]
    gap = _gap(height)
    whole = np.full((len(rows) * (height + gap), across * (width + gap), channels), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, number in enumerate(row.tolist()):
            top, left = i * (height + gap), j * (width + gap)
            whole[top:top + height, left:left + width] = images[number]
    return np.repeat(whole, 3, -1) if channels == 1 else whole
