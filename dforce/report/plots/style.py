"""The look shared by every picture: one palette, one figure constructor, no global matplotlib state."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, MUTED, GRID = "#1f2733", "#657085", "#e3e7ee"
WALL, FLOOR = "#ccd3de", "#ffffff"

# Okabe & Ito (2008), distinguishable under every common colour blindness; without their yellow, invisible on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
START, GOAL = PALETTE[0], PALETTE[2]

# Early is violet, late is orange. Plasma is monotone in lightness, so it survives greyscale; the yellow end is cut off.
TIME: Colormap = ListedColormap(colormaps["plasma"](np.linspace(0.08, 0.80, 256)), name="dforce_time")
# White is clean, dark blue is noise: the eye reads ink as noise left.
LEVEL: Colormap = LinearSegmentedColormap.from_list("dforce_level",
                                                    ["#ffffff", "#cfe1f2", "#6aaed6", "#2070b4", "#08306b"])

TITLE, LABEL, TICK = 13.0, 11.0, 10.0  # points; at 100 px an inch (a 9 inch figure shown 900 px wide) 10 pt is 14 px


def new_figure(width: float, height: float, *, dpi: int = 150) -> Figure:
    """An empty figure of width x height inches with its own Agg canvas; `figure.savefig(file)` writes it."""
    figure = Figure(figsize=(width, height), dpi=dpi, facecolor="white",
                    layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.07))
    FigureCanvasAgg(figure)
    return figure


def plain_axes(ax: Axes, *, title: str = "", xlabel: str = "", ylabel: str = "", grid: str = "") -> None:
    """Two quiet spines, muted ticks, title at the left. grid: "" (none), "x", "y" or "both"."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
        ax.spines[side].set_linewidth(0.8)
    ax.tick_params(colors=MUTED, labelsize=TICK, width=0.8, length=3, labelcolor=INK)
    if grid:
        ax.grid(axis=grid, color=GRID, linewidth=0.9)  # type: ignore[arg-type]
        ax.set_axisbelow(True)
    if title:
        ax.set_title(title, fontsize=TITLE, color=INK, loc="left", pad=10, fontweight="bold")
    ax.set_xlabel(xlabel, fontsize=LABEL, color=INK)
    ax.set_ylabel(ylabel, fontsize=LABEL, color=INK)


def plain_bar(bar: Colorbar, label: str) -> None:
    """A colour bar without a rim, in the look of the axes."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TICK, color=MUTED, labelcolor=INK, length=3)
    bar.set_label(label, fontsize=LABEL, color=INK)


def heading(figure: Figure, title: str) -> None:
    """The title of a figure of several panels, at the left; none for ""."""
    if title:
        figure.suptitle(title, fontsize=TITLE, fontweight="bold", color=INK, x=0.01, ha="left")


def numbers(name: str, values: object, shape: Sequence[int | None], letters: str) -> np.ndarray:
    """`values` as a float array of the wanted shape (None: any size), or a ValueError with what came and was wanted."""
    try:
        array = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers {letters}, got {type(values).__name__}: {error}") from error
    fits = array.ndim == len(shape) and all(want in (None, got) for want, got in zip(shape, array.shape, strict=True))
    if not fits:
        raise ValueError(f"{name} must have shape {letters}, got {list(array.shape)}")
    return array


def finite(name: str, array: np.ndarray) -> np.ndarray:
    """The same array, or a ValueError that names the first entry which is not finite."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        raise ValueError(f"{name} holds {len(bad)} values that are not finite, first at {bad[0].tolist()}")
    return array
