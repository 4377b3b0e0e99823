"""A plan being carried out, as an mp4 or gif."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from dforce.report.plots import maze_axes, style
from dforce.report.plots.maze_axes import REACH, check_walls, draw_fan, draw_markers, draw_maze, draw_path, view

BALL = 0.1  # radius of the ball in metres
DPI = 100
PAUSE = 1.0  # seconds the last frame stays, so that a looping film shows where it ended

Fans = Sequence[tuple[int, np.ndarray]]  # (first step at which the fan is in force, plans [P, H, 2])


def animation(walls: np.ndarray, plans: np.ndarray | Fans, path: np.ndarray, start: np.ndarray, goal: np.ndarray,
              file: str | Path, fps: int = 25, stride: int = 4, *, width: float = 4.8, reach: float = REACH,
              advance: Callable[[float], object] = lambda share: None) -> Path:
    """Film the execution of a plan, one frame every `stride` environment steps and one at the end; returns the file.

    walls: bool [R, C]; plans: [P, H, 2], the first being the chosen one, or, when replanning, a list of (step, plans)
    in rising order of step; path: [H + 1, 2] positions in metres; start, goal: [2]; width: inches; reach: of the ring
    around the goal. Without an H.264 encoder (the `av` package) an .mp4 becomes a .gif beside it. advance: told the
    share of each frame, 1 in all.
    """
    if fps < 1 or stride < 1:
        raise ValueError(f"fps and stride must be at least 1, got fps={fps}, stride={stride}")
    fans = _fans(plans)
    for _, fan in fans:
        maze_axes.checked_episode(fan, path, start, goal, 0)
    frames = _frames(check_walls(walls), fans, np.asarray(path, float), start, goal, stride, width, reach)
    count = -(-(len(path) - 1) // stride) + 1

    def drawn() -> Iterator[np.ndarray]:
        for frame in frames:
            yield frame
            advance(1 / count)
    return write_frames(file, drawn(), fps=fps)


def _fans(plans: np.ndarray | Fans) -> list[tuple[int, np.ndarray]]:
    if hasattr(plans, "ndim"):
        return [(0, np.asarray(plans, float))]
    fans = [(int(step), np.asarray(fan, float)) for step, fan in plans]
    steps = [step for step, _ in fans]
    if not fans or steps[0] != 0 or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
        raise ValueError(f"plans must be [P, H, 2] or (step, plans) pairs with steps rising from 0, got steps {steps}")
    return fans


def _frames(walls: np.ndarray, fans: Fans, path: np.ndarray, start: np.ndarray, goal: np.ndarray, stride: int,
            width: float, reach: float) -> Iterator[np.ndarray]:
    """RGB frames uint8 [height, width, 3], even sizes. Only the ball and its trail are redrawn between replans."""
    steps = [*range(0, len(path) - 1, stride), len(path) - 1]
    background, current = None, -1
    for step in steps:
        due = max(n for n, (first, _) in enumerate(fans) if first <= step)
        if due != current:
            current = due
            figure, canvas, marks = _stage(walls, fans[due][1], start, goal, width, reach)
            ax = figure.axes[0]
            caption = ax.text(0.01, 0.012, "", transform=ax.transAxes, fontsize=style.LABEL, color=style.INK, zorder=11)
            ball = Circle((0, 0), BALL, facecolor=style.INK, edgecolor="white", linewidth=1.5, zorder=10)
            ax.add_patch(ball)
            for artist in (caption, ball):
                artist.set_animated(True)  # left out of the background, drawn by hand in each frame
            canvas.draw()
            background = canvas.copy_from_bbox(figure.bbox)
        canvas.restore_region(background)
        lines = draw_path(ax, path[: step + 1], size=1.2)
        ball.center = (path[step, 1], path[step, 0])
        caption.set_text(f"step {step}")
        for drawn in (*lines, *marks, ball, caption):
            ax.draw_artist(drawn)
        for line in lines:
            line.remove()
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _stage(walls: np.ndarray, fan: np.ndarray, start: np.ndarray, goal: np.ndarray, width: float,
           reach: float) -> tuple[Figure, FigureCanvasAgg, list[Artist]]:
    """The still part of a frame, its sides an even number of pixels, as H.264 wants them."""
    top, bottom, left, right = view(walls)
    pixels = [2 * round(side * DPI / 2) for side in (width, width * (bottom - top) / (right - left))]
    figure = Figure(figsize=(pixels[0] / DPI, pixels[1] / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    draw_maze(ax, walls)
    draw_fan(ax, fan, size=0.9)
    marks = draw_markers(ax, np.asarray(start, float), np.asarray(goal, float), size=0.9, reach=reach)
    return figure, canvas, marks


def write_frames(file: str | Path, frames: Iterable[np.ndarray], *, fps: int) -> Path:
    """Write uint8 [height, width, 3] frames as .mp4 or looping .gif, holding the last; returns the file written."""
    file = Path(file)
    if file.suffix not in (".mp4", ".gif"):
        raise ValueError(f"a film ends in .mp4 or .gif, got {file.name!r}")
    file.parent.mkdir(parents=True, exist_ok=True)
    film = list(frames)
    if not film:
        raise ValueError("a film needs at least one frame, got none")
    film += [film[-1]] * round(PAUSE * fps)
    if file.suffix == ".mp4":
        try:
            iio.imwrite(file, np.stack(film), plugin="pyav", codec="libx264", fps=fps, out_pixel_format="yuv420p")
            return file
        except (ImportError, OSError, ValueError):  # no `av`, or an `av` built without H.264
            file.unlink(missing_ok=True)
            file = file.with_suffix(".gif")
    # One palette and no dithering: the pictures are flat colours, and a shimmering floor would cost size and beauty.
    samples = [film[round(n)] for n in np.linspace(0, len(film) - 1, 8)]
    palette = Image.fromarray(np.concatenate(samples)).quantize(256)
    first, *rest = (Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in film)
    # Pillow joins equal neighbours into one longer frame, so the pause costs nothing.
    first.save(file, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    return file
