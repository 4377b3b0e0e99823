"""What was seen over time beside what had been expected of it."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from dforce.report.plots import style

NAMED = {"red": style.PALETTE[1], "green": style.PALETTE[2], "blue": style.PALETTE[0], "yellow": style.PALETTE[4]}


def expectation_chart(times: np.ndarray, seen: Mapping[str, np.ndarray], expected_times: np.ndarray,
                      expected: Mapping[str, np.ndarray], *, size: tuple[int, int], unit: str, title: str,
                      ) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A picture uint8 [H, W, 3] of lines and dots, and where its axes are: left, right, top and bottom in pixels. The
    first of the times is at the left, the last at the right.

    seen: name -> [T] at the times [T]; expected: name -> [E] at expected_times [E]. size: W, H in pixels.
    """
    dpi = 150
    figure: Figure = style.new_figure(size[0] / dpi, size[1] / dpi, dpi=dpi)
    ax = figure.add_subplot()
    style.plain_axes(ax, title=title, xlabel="seconds", ylabel=unit, grid="y")
    for number, (name, values) in enumerate(seen.items()):
        color = NAMED.get(name.partition(" ")[0], style.PALETTE[number % len(style.PALETTE)])
        ax.plot(times, values, color=color, linewidth=1.8, label=f"{name}, seen")
        ax.plot(expected_times, expected[name], ".", color=color, markersize=5, alpha=0.75, label=f"{name}, expected")
    ax.set_xlim(times[0], max(times[-1], times[0] + 1e-6))
    ax.legend(fontsize=style.TICK - 3, frameon=False, ncols=len(seen), loc="lower left", bbox_to_anchor=(0.5, 1.0),
              borderaxespad=0)
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()  # type: ignore[attr-defined]
    box = ax.bbox
    return picture, (round(box.x0), round(box.x1), round(size[1] - box.y1), round(size[1] - box.y0))
