"""Grids of images: sets side by side, a class a row; or image by image, under its prompt and over its reward."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from dforce.images.judge import Judged
from dforce.images.model import pixels
from dforce.report.plots import style

CELL, GAP = 0.42, 0.06  # inches of a square image (others have its area), and of a gap as a share of an image
ACROSS, DOWN = 8, 16    # images of a class (half as many wide ones), and classes, in a picture of judged sets
WIDE, SIDE = 12.0, 1.8  # inches of a picture of cards, and of the side of an image in it
CARDS = 12              # of a picture
LINES = 3               # of a prompt


def side_by_side(sets: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str], *, per_class: int = 8,
                 title: str = "") -> Figure:
    """One panel a set, one row a class, its first `per_class` images. sets: name -> [N, 1, C, H, W]; labels: [N]."""
    if not sets or any(len(x) != len(labels) for x in sets.values()):
        sizes = {name: len(x) for name, x in sets.items()}
        raise ValueError(f"every set needs one image for each of the {len(labels)} labels, got {sizes}")
    shown = [int(label) for label in labels.unique()]
    rows = [(labels == label).nonzero().flatten()[:per_class] for label in shown]
    across = max(map(len, rows))
    height, width = next(iter(sets.values())).shape[-2:]
    shape = (width / height) ** 0.5
    figure = style.new_figure(1.2 + len(sets) * (across * CELL * shape + 0.25), 0.9 + len(rows) * CELL / shape)
    axes = figure.subplots(1, len(sets), squeeze=False)[0]
    for ax, (name, x) in zip(axes, sets.items(), strict=True):
        ax.imshow(_mosaic(pixels(x), rows, across), interpolation="nearest")
        ax.set_title(name, fontsize=style.LABEL, color=style.INK, loc="left")
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_visible(False)
    axes[0].set_yticks([row * (height + _gap(height)) + height / 2 for row in range(len(rows))],
                       [classes[label] for label in shown], fontsize=style.TICK, color=style.INK)
    axes[0].tick_params(axis="y", length=0)
    style.heading(figure, title)
    return figure


def by_class(sets: Mapping[str, Judged], labels: Tensor, classes: Sequence[str]) -> Figure:
    """Judged sets side by side, a class a row; of many classes the first ones."""
    shown = torch.isin(labels, labels.unique()[:DOWN])
    height, width = next(iter(sets.values())).x.shape[-2:]
    return side_by_side({name: each.x[shown] for name, each in sets.items()}, labels[shown], classes,
                        per_class=min(ACROSS if width < 2 * height else ACROSS // 2, int(labels.bincount().max())))


def by_prompt(sets: Mapping[str, Judged], labels: Tensor, prompts: Sequence[str]) -> Figure:
    """Cards of images from the same noise, a set beside the other, each over its reward and all under their prompt.

    Some of every prompt in turn, until there are `CARDS`.
    """
    turn = [int((labels[:i] == label).sum()) for i, label in enumerate(labels)]  # the how manieth of its prompt
    chosen = sorted(range(len(labels)), key=lambda i: (turn[i], i))[:CARDS]
    chosen = sorted(chosen, key=lambda i: (int(labels[i]), i))
    across = min(max(1, int(WIDE / (SIDE * len(sets) + 0.3))), len(chosen))
    down = -(-len(chosen) // across)
    letters = int(SIDE * len(sets) * 11.5)
    texts = [textwrap.shorten(" ".join(str(prompts[int(labels[i])]).split()), LINES * letters - 4, placeholder="…")
             for i in chosen]
    texts = [textwrap.fill(text, letters) for text in texts]
    lines = max(text.count("\n") + 1 for text in texts)
    figure = style.new_figure(across * (SIDE * len(sets) + 0.3), down * (SIDE + 0.4 + 0.2 * lines))
    grids = figure.subfigures(down, across, squeeze=False, wspace=0.04).flatten()
    shown = {name: pixels(each.x[chosen]) for name, each in sets.items()}
    for place, (grid, i, text) in enumerate(zip(grids, chosen, texts, strict=False)):
        grid.suptitle(text + "\n" * (lines - 1 - text.count("\n")), fontsize=style.TICK, color=style.INK, x=0.02,
                      ha="left")
        for ax, (name, each) in zip(grid.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
            image = shown[name][place]
            ax.imshow(np.repeat(image, 3, -1) if image.shape[-1] == 1 else image, interpolation="nearest")
            value = f"{each.values['reward'][i]:#.3g}".rstrip(".") if "reward" in each.values else ""
            ax.set_xlabel(" ".join(filter(None, [name if len(sets) > 1 else "", value])), fontsize=style.TICK,
                          color=style.INK)
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
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
