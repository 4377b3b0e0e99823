"""The parts of a maze picture, drawn on given axes: walls, plans coloured by time, executed path, start and goal.

Frame: `x` is the row and `y` the column of the maze text, so pictures look like the text. The ball's body stands at
(1.2, 1.2) and the wall of cell (i, j) is a box of half-size .5 at (i + 1, j + 1) in world coordinates (D4RL,
pointmaze/maze_model.py), so in observed positions the box is centred on (i - .2, j - .2).
"""

from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from dforce.report.plots import style

BODY = 1.2  # world = observed position + BODY
HALF = 0.5  # half-size of a wall box
RIM = 0.35  # how much of the outer wall is shown, in cells; more would be grey paper
REACH = 0.5  # the sparse reward is 1 within this distance of the goal, in maze2d


def wall_corner(i: float, j: float) -> tuple[float, float]:
    """The corner of cell (i, j) with the smallest (x, y), in observed positions."""
    return i + 1 - BODY - HALF, j + 1 - BODY - HALF


def check_walls(walls: object) -> np.ndarray:
    """walls: bool [R, C], True where a wall stands."""
    array = np.asarray(walls)
    if array.ndim != 2 or array.dtype != bool:
        raise ValueError(f"walls must be a bool array [R, C], got {array.dtype} {list(array.shape)}; "
                         "build it from the maze text with True where '#' stands")
    return array


def view(walls: np.ndarray) -> tuple[float, float, float, float]:
    """The extent of a picture, (x low, x high, y low, y high) in metres: a side that is all wall is cut to RIM."""
    (top, left), (bottom, right) = wall_corner(0, 0), wall_corner(*walls.shape)
    cut = 1 - RIM
    return (top + cut * bool(walls[0].all()), bottom - cut * bool(walls[-1].all()),
            left + cut * bool(walls[:, 0].all()), right - cut * bool(walls[:, -1].all()))


def draw_maze(ax: Axes, walls: np.ndarray, *, ticks: bool = False) -> None:
    """Draw the walls and set the limits. walls: bool [R, C]; ticks: show coordinates in metres."""
    walls = check_walls(walls)
    rows, columns = walls.shape
    boxes = []
    for i, j in np.argwhere(walls):
        x, y = wall_corner(i, j)
        boxes.append([(y, x), (y + 1, x), (y + 1, x + 1), (y, x + 1)])
    # The edge has the colour of the face: without it, antialiasing leaves hairlines between neighbouring boxes.
    ax.add_collection(PolyCollection(boxes, facecolors=style.WALL, edgecolors=style.WALL, linewidths=0.6, zorder=1))
    top, bottom, left, right = view(walls)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", facecolor=style.FLOOR)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if ticks:
        ax.tick_params(labelsize=style.TICK, labelcolor=style.INK, color=style.MUTED, length=3)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("y (m)", fontsize=style.LABEL, color=style.INK)
        ax.set_ylabel("x (m)", fontsize=style.LABEL, color=style.INK)
    else:
        ax.set(xticks=[], yticks=[])


def timed_lines(plans: np.ndarray, **look: Any) -> LineCollection:
    """Lines coloured by time. plans: [P, H, 2] positions (x, y); `look` goes to LineCollection."""
    points = plans[..., ::-1]
    segments = np.stack([points[:, :-1], points[:, 1:]], axis=2).reshape(-1, 2, 2)
    lines = LineCollection(list(segments), cmap=style.TIME, norm=Normalize(0, 1), **look)
    lines.set_array(np.tile(np.linspace(0, 1, plans.shape[1] - 1), len(plans)))
    return lines


def draw_markers(ax: Axes, start: np.ndarray, goal: np.ndarray, *, size: float = 1.0,
                 reach: float = REACH) -> list[Artist]:
    """The ring of radius `reach` around the goal [2], its star, and the disc of the start [2]."""
    dashes = (0, (4, 3))
    look: dict[str, Any] = {"fill": False, "edgecolor": style.GOAL, "linewidth": 1.3 * size, "linestyle": dashes}
    ring = ax.add_patch(Circle((goal[1], goal[0]), reach, zorder=6, **look))
    rim: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white", "zorder": 9}
    star = Line2D([goal[1]], [goal[0]], marker="*", markersize=19 * size, color=style.GOAL, markeredgewidth=size, **rim)
    disc = Line2D([start[1]], [start[0]], marker="o", markersize=11 * size, color=style.START,
                  markeredgewidth=1.5 * size, **rim)
    return [ring, ax.add_line(star), ax.add_line(disc)]


def draw_fan(ax: Axes, plans: np.ndarray, *, chosen: int = 0, size: float = 1.0) -> None:
    """Faint candidates and one strong chosen plan, all coloured by time. plans: [P, H, 2]."""
    others = np.delete(plans, chosen, axis=0)
    if len(others):
        alpha = float(np.clip(3.0 / len(others), 0.12, 0.40))
        ax.add_collection(timed_lines(others, linewidths=1.3 * size, alpha=alpha, zorder=2))
    ax.add_collection(timed_lines(plans[chosen : chosen + 1], linewidths=7.5 * size, color="white", zorder=3,
                                  capstyle="round"))
    ax.add_collection(timed_lines(plans[chosen : chosen + 1], linewidths=5.0 * size, zorder=4, capstyle="round"))


def draw_path(ax: Axes, path: np.ndarray, *, size: float = 1.0) -> list[Line2D]:
    """The executed path as a thin dark line with a light rim, over the plan; returns both lines. path: [H + 1, 2]."""
    look: dict[str, Any] = {"solid_capstyle": "round", "solid_joinstyle": "round"}
    rim = ax.plot(path[:, 1], path[:, 0], color="white", linewidth=3.0 * size, alpha=0.8, zorder=6, **look)
    ink = ax.plot(path[:, 1], path[:, 0], color=style.INK, linewidth=1.5 * size, zorder=7, **look)
    return [*rim, *ink]


def checked_episode(plans: object, path: object | None, start: object, goal: object,
                    chosen: int) -> tuple[Any, Any, Any, Any]:
    """Checked arrays plans [P, H, 2], path [H + 1, 2] or None, start [2], goal [2]"""
    fan = style.finite("plans", style.numbers("plans", plans, (None, None, 2), "[P, H, 2]"))
    if len(fan) == 0 or fan.shape[1] < 2:
        raise ValueError(f"plans needs at least one plan of two steps, got shape {list(fan.shape)}")
    if not 0 <= chosen < len(fan):
        raise ValueError(f"chosen must index one of the {len(fan)} plans, got {chosen}")
    walk = None if path is None else style.finite("path", style.numbers("path", path, (None, 2), "[H + 1, 2]"))
    begin = style.finite("start", style.numbers("start", start, (2,), "[2]"))
    end = style.finite("goal", style.numbers("goal", goal, (2,), "[2]"))
    return fan, walk, begin, end
