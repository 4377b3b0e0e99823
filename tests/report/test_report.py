"""Pictures say what the arrays say, tables equal their rows, pages escape what they show."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import imageio.v3 as iio
import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb

from dforce.report import html, movie, table
from dforce.report import rows as results
from dforce.report.plots import curves, style
from dforce.report.plots import maze as maze_plots
from dforce.report.plots.benchmark import forest
from dforce.report.plots.maze_axes import draw_maze, timed_lines, view
from dforce.report.plots.traces import traces
from dforce.report.statistics import median_interval

UMAZE = np.array([[c == "#" for c in row] for row in ("#####", "#GOO#", "###O#", "#OOO#", "#####")])
WIDE = np.array([[c == "#" for c in row] for row in ("######", "#OO#O#", "#OOOO#", "######")])
START, GOAL = np.array([2.8, 0.8]), np.array([1.0, 1.0])
CORNERS = np.array([[2.8, 0.8], [2.8, 2.8], [0.8, 2.8], [0.8, 0.9]])
HEADER = {"command": "dforce x", "commit": "c0ffee", "versions": {}, "machine": {}, "seconds": 1.5,
          "peak_memory_mb": 9.0}


def walk(steps: int = 40) -> np.ndarray:
    """[steps, 2] along the free cells of umaze."""
    at = np.linspace(0, 3, steps)
    return np.stack([np.interp(at, range(4), CORNERS[:, axis]) for axis in range(2)], axis=1)


def fan(count: int = 3, steps: int = 40) -> np.ndarray:
    return walk(steps) + np.random.default_rng(0).normal(size=(count, 1, 2)) * 0.03


def pixels(figure) -> np.ndarray:
    """[height, width, 3] in 0..1."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3] / 255.0


def row(method: str = "pyramid", value: float | None = 1.0, *, spread: float | None = 0.5, **change) -> dict:
    low, high = (None, None) if spread is None or value is None else (value - spread, value + spread)
    made = {"task": "umaze", "method": method, "variant": {"starts": "all"}, "metric": "score", "value": value}
    made |= {"low": low, "high": high, "n": 100, "seeds": 3, "unit": "x100", "higher_is_better": True}
    return made | change


# ---------------------------------------------------------------------------------------------- mazes


@pytest.mark.parametrize("walls", [UMAZE, WIDE])
def test_every_wall_and_only_walls_are_drawn_where_the_ball_cannot_be(walls):
    """The ball (radius .1) in a free cell reaches [i - .6, i + .2]; the wall of (i, j) fills [i - .7, i + .3]."""
    figure = style.new_figure(6, 6 * walls.shape[0] / walls.shape[1])
    ax = figure.add_subplot()
    draw_maze(ax, walls)
    image = pixels(figure)
    for i, j in np.ndindex(walls.shape):
        inside = [(i - 0.2, j - 0.2)] + [(i - 0.2 + a, j - 0.2 + b) for a in (-0.47, 0.47) for b in (-0.47, 0.47)]
        x_low, x_high, y_low, y_high = view(walls)
        for x, y in inside:
            if not (x_low + 0.02 < x < x_high - 0.02 and y_low + 0.02 < y < y_high - 0.02):
                continue  # beyond the rim that is shown
            column, up = ax.transData.transform((y, x))
            got = image[image.shape[0] - 1 - int(up), int(column)]
            want = to_rgb(style.WALL if walls[i, j] else style.FLOOR)
            np.testing.assert_allclose(got, want, atol=0.01, err_msg=f"cell {(i, j)}, position {(x, y)}")


def test_rows_point_downwards_and_columns_to_the_right():
    figure = style.new_figure(4, 4)
    ax = figure.add_subplot()
    draw_maze(ax, UMAZE)
    figure.canvas.draw()
    (left, top), (right, below) = ax.transData.transform((0.8, 0.8)), ax.transData.transform((2.8, 2.8))
    assert right > left and below < top  # display coordinates: y grows upwards


def test_time_colours_run_from_first_to_last_segment_of_every_plan():
    lines = timed_lines(fan(3, 11))
    assert len(lines.get_segments()) == 30
    np.testing.assert_allclose(lines.get_array().reshape(3, 10), np.tile(np.linspace(0, 1, 10), (3, 1)))
    np.testing.assert_allclose(lines.get_segments()[0], fan(3, 11)[0, :2, ::-1])


@pytest.mark.parametrize("path", [None, walk(41)])
def test_plan_figure_shows_the_path_only_if_there_is_one(tmp_path, path):
    figure = maze_plots.plan_figure(UMAZE, fan(), path, START, GOAL, "a plan")
    figure.savefig(tmp_path / "plan.png")
    height, width = iio.imread(tmp_path / "plan.png").shape[:2]
    assert (width, height) == tuple((figure.get_size_inches() * figure.dpi).astype(int))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["start", "goal", "chosen plan", "other plans"] + ["executed"] * (path is not None)


def test_chosen_plan_is_the_strong_one():
    figure = maze_plots.plan_figure(UMAZE, fan(3), None, START, GOAL, chosen=2)
    strongest = max(figure.axes[0].collections[1:], key=lambda drawn: drawn.get_zorder())
    np.testing.assert_allclose(strongest.get_segments()[0][0], fan(3)[2, 0, ::-1])


def test_grid_and_strip_have_a_panel_each(tmp_path):
    grid = maze_plots.plan_grid(UMAZE, [fan()] * 5, [walk()] * 4 + [None], [START] * 5, [GOAL] * 5, list("abcde"),
                                columns=3)
    assert [ax.get_title(loc="left") for ax in grid.axes[:5]] == list("abcde") and not grid.axes[5].get_visible()
    estimates = np.stack([walk()] * 21)
    strip = maze_plots.denoising_strip(UMAZE, estimates, START, GOAL, [str(n) for n in range(21)], columns=5)
    assert [ax.get_title() for ax in strip.axes] == ["0", "5", "10", "15", "20"]
    for figure, name in ((grid, "grid.png"), (strip, "strip.png")):
        figure.savefig(tmp_path / name)
        assert iio.imread(tmp_path / name).std() > 0


def test_coverage_counts_every_position():
    positions = np.array([[1.0, 1.0]] * 5 + [[3.0, 2.0]] * 2)
    image = maze_plots.coverage(UMAZE, positions).axes[0].images[0]
    counts = image.get_array()
    assert counts.shape == (60, 60) and counts.sum() == 7
    # x = 1 lies 1.7 cells from the corner at -.7, in square 20 of 12 a cell; rows of the image are x
    assert counts[20, 20] == 5 and counts[44, 32] == 2


# ---------------------------------------------------------------------------------------------- films


@pytest.mark.parametrize("stride, frames", [(4, 11), (7, 7)])
def test_film_has_a_frame_every_stride_and_one_at_the_end(tmp_path, stride, frames):
    pause = round(movie.PAUSE * 10)
    path = walk(41)
    gif = movie.animation(UMAZE, fan(), path, START, GOAL, tmp_path / "a.gif", fps=10, stride=stride)
    assert iio.imread(gif).shape[:3] == (frames, 480, 480)  # pillow joins the pause into the last frame
    mp4 = movie.animation(WIDE, fan(), path, START, GOAL, tmp_path / "a.mp4", fps=10, stride=stride)
    if mp4.suffix == ".mp4":
        film = iio.imread(mp4, plugin="pyav")
        assert len(film) == frames + pause and film.shape[1] % 2 == film.shape[2] % 2 == 0


def test_film_follows_the_path_and_the_replanned_fan(tmp_path):
    path = walk(41)
    replanned = [(0, fan(2)), (20, fan(2) + 0.1)]
    film = iio.imread(movie.animation(UMAZE, replanned, path, START, GOAL, tmp_path / "a.gif", stride=10))
    x_low, x_high, y_low, y_high = view(UMAZE)
    for frame, step in zip(film, (0, 10, 20, 30, 40), strict=True):
        x, y = path[step]
        at = int((x - x_low) / (x_high - x_low) * 480), int((y - y_low) / (y_high - y_low) * 480)
        np.testing.assert_allclose(frame[at], np.array(to_rgb(style.INK)) * 255, atol=25)


def test_mp4_without_an_encoder_becomes_a_gif(tmp_path, monkeypatch):
    def no_encoder(*_, **__):
        raise ImportError("no av")

    monkeypatch.setattr(movie.iio, "imwrite", no_encoder)
    frames = [np.full((8, 8, 3), shade, np.uint8) for shade in (0, 120, 255)]
    made = movie.write_frames(tmp_path / "a.mp4", frames, fps=5)
    assert made.name == "a.gif" and len(list(tmp_path.iterdir())) == 1
    assert [frame.mean() for frame in iio.imread(made)] == pytest.approx([0, 120, 255], abs=2)


# ---------------------------------------------------------------------------------------------- curves


def test_heatmap_shows_the_matrix_itself():
    matrix = np.array([[9, 9, 9], [5, 9, 9], [0, 5, 9], [0, 0, 0]])
    ax = curves.schedule_heatmap(matrix, 9).axes[0]
    np.testing.assert_array_equal(ax.images[0].get_array(), matrix)
    assert ax.images[0].norm.vmin == 0 and ax.images[0].norm.vmax == 9


def test_running_median_ignores_spikes_and_gaps():
    y = np.ones(200)
    y[[50, 120]] = 1e6, np.nan
    np.testing.assert_array_equal(curves.running_median(y), np.ones(200))
    assert np.isnan(curves.running_median(np.full(5, np.nan))).all()


def test_loss_curve_is_logarithmic_only_for_positive_losses():
    assert curves.loss_curve([0, 1, 2], [3.0, None, 1.0], [0, 2], [3.0, 2.0]).axes[0].get_yscale() == "log"
    assert curves.loss_curve([0, 1, 2], [3.0, 0.0, -1.0]).axes[0].get_yscale() == "linear"
    curves.loss_curve([], []).canvas.draw()  # type: ignore[attr-defined]


def test_bars_stand_at_the_values_and_references_are_lines():
    blocked = {"variant": {"starts": "blocked"}}
    rows = [row("a", 3.0), row("b", 7.0), row("mark", 9.0), row("a", 1.0, **blocked), row("b", None, **blocked)]
    figure = curves.bars_with_intervals(rows, "score", references=["mark"])
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [3.0, 7.0] and [bar.get_width() for bar in right.patches] == [
        1.0
    ]
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["a", "b"]
    assert any(list(line.get_xdata()) == [2.5, 3.5] for line in left.lines)  # the interval
    assert any(list(line.get_xdata()) == [9.0, 9.0] for line in left.lines)  # the reference
    assert {"mark 9.00", "3.00"} <= {text.get_text() for text in left.texts}


def test_a_forest_draws_every_difference_and_fills_the_settled_ones():
    panels = {"all": {"a - b": {"x": (2.0, 1.0, 3.0), "y": (1.0, -1.0, 3.0)}, "a - c": {"y": (-2.0, -3.0, -1.0)}},
              "some": {"a - b": {"x": (0.5, 0.0, 1.0)}}}
    left, right = forest(panels, xlabel="difference").axes
    spans = {tuple(line.get_xdata()): line.get_ydata()[0] for line in left.lines if len(line.get_xdata()) == 2}
    assert spans[1.0, 3.0] < spans[-1.0, 3.0] < spans[-3.0, -1.0]  # heights, downwards in the order given
    filled = {line.get_xdata()[0]: line.get_markerfacecolor() != "white" for line in left.lines + right.lines
              if len(line.get_xdata()) == 1}
    assert filled == {2.0: True, 1.0: False, -2.0: True, 0.5: False}
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["a - b", "a - c"]
    with pytest.raises(ValueError, match="nothing to draw"):
        forest({"all": {}}, xlabel="difference")
    with pytest.raises(ValueError, match="up to 7 series, got 8"):
        forest({"all": {"a - b": {str(n): (0.0, 0.0, 0.0) for n in range(8)}}}, xlabel="difference")


def test_no_global_matplotlib_state_is_touched():
    """Figures are drawn beside a user's own: no figure of pyplot's is made or kept, and no setting changes."""
    before = dict(matplotlib.rcParams), pyplot.get_fignums()
    maze_plots.plan_figure(UMAZE, fan(), walk(), START, GOAL, "a plan")
    curves.bars_with_intervals([row("a", 3.0)], "score")
    forest({"all": {"a - b": {"x": (2.0, 1.0, 3.0)}}}, xlabel="difference")
    assert (dict(matplotlib.rcParams), pyplot.get_fignums()) == before


# ---------------------------------------------------------------------------------------------- results and tables


def test_results_come_back_as_written_and_numpy_becomes_plain(tmp_path):
    rows = [row(value=np.float32(2.5)), row("b", None, n=np.int64(7))]
    file = results.write_results(tmp_path / "deep" / "results.json", HEADER, rows)
    back = results.read_results(file)
    assert back.header == HEADER and back.rows == [row(value=2.5), row("b", None, n=7)]
    assert [p.name for p in file.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    "change, message",
    [({"valeu": 1.0}, "unknown key 'valeu': did you mean 'value'"), ({"value": float("nan")}, "key 'value' is nan"),
     ({"value": "1"}, "value must be a number"), ({"low": None}, "low and high"), ({"low": 9.0}, "low and high"),
     ({"n": 1.5}, "n must be a count"), ({"variant": {"a": {"b": 1}}}, "flat"),
     ({"method": ""}, "method must be a non-empty string"), ({"higher_is_better": "yes"}, "higher_is_better")],
)
def test_a_wrong_row_is_refused_by_number_and_reason(tmp_path, change, message):
    with pytest.raises(ValueError, match=f"row 1.*{re.escape(message)}"):
        results.write_results(tmp_path / "results.json", HEADER, [row(), row() | change])
    assert not (tmp_path / "results.json").exists()


def test_missing_keys_and_broken_files_are_named(tmp_path):
    short = row()
    del short["unit"]
    with pytest.raises(ValueError, match="row lacks 'unit'"):
        results.check_row(short)
    with pytest.raises(ValueError, match="header lacks 'commit'"):
        results.write_results(tmp_path / "r.json", {key: HEADER[key] for key in HEADER if key != "commit"}, [])
    (tmp_path / "r.json").write_text('{"header": {')
    with pytest.raises(ValueError, match="r.json is not JSON"):
        results.read_results(tmp_path / "r.json")


def test_episodes_are_appended_and_a_broken_line_is_named(tmp_path):
    file = tmp_path / "episodes.jsonl"
    results.append_episodes(file, [{"seed": 0, "score": np.float64(1.5)}])
    results.append_episodes(file, [{"seed": 1, "score": 2.0}])
    assert list(results.read_episodes(file)) == [{"seed": 0, "score": 1.5}, {"seed": 1, "score": 2.0}]
    with pytest.raises(ValueError, match=r"episode 0 must be flat.*start"):
        results.append_episodes(file, [{"start": [1, 2]}])
    with file.open("a") as stream:
        stream.write('{"se')
    with pytest.raises(ValueError, match="line 3"):
        list(results.read_episodes(file))


def test_episodes_written_anew_replace_what_was_there_and_what_a_killed_process_left(tmp_path):
    file = tmp_path / "episodes.jsonl"
    results.append_episodes(file, [{"seed": 0}])
    (tmp_path / "episodes.jsonl.part").write_text('{"se')
    assert results.write_episodes(file, [{"seed": 1}, {"seed": 2}]) == file
    assert list(results.read_episodes(file)) == [{"seed": 1}, {"seed": 2}] and list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match="must be flat"):
        results.write_episodes(file, [{"start": [1, 2]}])
    assert len(list(results.read_episodes(file))) == 2


def test_select_by_key_and_variant():
    rows = [row("a"), row("b"), row("a", variant={"starts": "blocked", "hold": True})]
    assert results.filter_rows(rows, method=("a", "c")) == [rows[0], rows[2]]
    assert results.filter_rows(rows, variant={"hold": True}) == [rows[2]]
    with pytest.raises(ValueError, match="cannot select by"):
        results.filter_rows(rows, methd="a")


def test_table_numbers_equal_the_rows():
    """Every value, low and high read back from the table equals its row within half of the last decimal shown."""
    rng = np.random.default_rng(0)
    rows = [
        row(method, float(rng.normal() * scale), spread=float(scale * rng.random()), metric=metric,
            variant={"starts": starts})
        for method in ("a", "b", "c")
        for metric, scale in (("score", 100.0), ("success", 0.3), ("tiny", 2e-4))
        for starts in ("all", "blocked")
    ]
    (made,) = table.tabulate(rows)
    assert made.labels == ["a", "b", "c"] and len(made.headings) == 6
    seen = 0
    for cells in made.cells:
        for cell in cells:
            numbers = re.findall(r"-?\d+(?:\.(\d+))?", cell.text), re.findall(r"-?\d+(?:\.\d+)?", cell.text)
            for decimals, text, key in zip(*numbers, ("value", "low", "high"), strict=True):
                assert abs(float(text) - cell.row[key]) <= 0.5 * 10 ** -len(decimals) + 1e-9
                seen += 1
    assert seen == 3 * len(rows)


def test_of_differences_those_are_bold_that_are_settled():
    rows = [{**row(name, value), "metric": "score_difference", "low": value - 1, "high": value + 1}
            for name, value in (("a - b", 5.0), ("a - c", 0.5), ("a - d", -2.0))]
    text = table.markdown_table(rows)
    assert "**5.00 [4.00, 6.00]**" in text and "**-2.00 [-3.00, -1.00]**" in text and "**0.50" not in text


def test_lines_are_named_by_what_varies_within_a_method_and_the_best_is_bold():
    base = {"starts": "all", "executor": "pd"}
    rows = [row("a", 1.0, variant=base), row("m", 5.0, variant=base | {"n_futures": 1})]
    rows += [row("m", 3.0, variant=base | {"n_futures": 8}), row("a", 2.0, metric="time", higher_is_better=False)]
    rows[-1]["variant"] = base
    text = table.markdown_table(rows).splitlines()
    assert text[0] == "| method | score, all (n=100) ↑ | time, all (n=100) ↓ |"
    assert text[2:5] == ["| a | 1.00 [0.50, 1.50] | 2.00 [1.50, 2.50] |",
                         "| m, n_futures=1 | **5.00 [4.50, 5.50]** |  |", "| m, n_futures=8 | 3.00 [2.50, 3.50] |  |"]


def test_a_cell_with_two_rows_and_an_unknown_metric_are_refused():
    with pytest.raises(ValueError, match="two rows for 'a'.*1.0 and 2.0"):
        table.markdown_table([row("a", 1.0), row("a", 2.0)])
    with pytest.raises(ValueError, match="no row has the metric 'scroe'; there are score"):
        table.tabulate([row()], metrics=["scroe"])
    with pytest.raises(ValueError, match="no row has the metric"):
        curves.bars_with_intervals([row()], "speed")
    assert table.markdown_table([]) == ""


# ---------------------------------------------------------------------------------------------- page


EVIL = "<script>alert('x')</script>&\"'"


def run_folder(place: Path) -> Path:
    folder = place / "demo" / "one"
    (folder / "media").mkdir(parents=True)
    (folder / "STATUS").write_text("done\n")
    (folder / "config.yaml").write_text(f"name: {EVIL}\n")
    (folder / "env.json").write_text(json.dumps({"command": f"dforce {EVIL}", "commit": EVIL, "time": EVIL}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": s, EVIL: 1 / (s + 1)}) + "\n" for s in range(9)))
    evil_row = row(EVIL, 12.5, task=EVIL, metric=EVIL, unit=EVIL, variant={"starts": EVIL})
    results.write_results(folder / "results.json", HEADER | {"command": EVIL}, [evil_row, row("b", 3.0)])
    for name in ("plan.png", "loss.png", "a&b c.png"):
        iio.imwrite(folder / "media" / name, np.zeros((4, 4, 3), np.uint8))
    (folder / "media" / "captions.json").write_text(json.dumps({"loss.png": EVIL}))
    return folder


def test_page_escapes_everything_and_shows_numbers_pictures_settings(tmp_path):
    text = html.write_index(run_folder(tmp_path)).read_text()
    assert "<script" not in text and "alert(" in text
    for wanted in (EVIL, "12.5", "done", "3.00 [2.50, 3.50]"):
        assert wanted in re.sub(r"</?(span|b)>", "", unescape(text))
    assert re.findall(r'<img src="([^"]+)"', text) == ["media/loss.png", "media/plan.png", "media/a%26b%20c.png"]
    assert text.count("<polyline") == 1 and "config.yaml" in text
    assert "http" not in text.replace("http-equiv", "")  # nothing is fetched from anywhere


def test_embedded_page_needs_no_other_file(tmp_path):
    text = html.write_index(run_folder(tmp_path), embed=True).read_text()
    assert text.count("data:image/png;base64,") == 3 and 'src="media' not in text


def test_page_of_a_run_that_failed_or_has_nothing_yet(tmp_path):
    assert "no status" in html.write_index(tmp_path).read_text()
    (tmp_path / "STATUS").write_text("failed: loss <nan> at step 7\n")
    (tmp_path / "results.json").write_text('{"rows": [')
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": null}\n{"st')
    (tmp_path / "env.json").write_text("[]")
    text = html.write_index(tmp_path).read_text()
    for wanted in ("status failed", "loss &lt;nan&gt; at step 7", "results.json could not be shown", "1 line"):
        assert wanted in text
    assert [path.name for path in tmp_path.glob("index*")] == ["index.html"]


def test_page_reloads_only_while_running(tmp_path):
    (tmp_path / "STATUS").write_text("running\n")
    assert 'http-equiv="refresh"' in html.write_index(tmp_path).read_text()
    (tmp_path / "STATUS").write_text("done\n")
    assert "refresh" not in html.write_index(tmp_path).read_text()


# ---------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "call, message",
    [(lambda: maze_plots.plan_figure(UMAZE.astype(int), fan(), None, START, GOAL), "walls must be a bool array"),
     (lambda: maze_plots.plan_figure(UMAZE, walk(), None, START, GOAL), r"plans must have shape \[P, H, 2\]"),
     (lambda: maze_plots.plan_figure(UMAZE, fan() * np.nan, None, START, GOAL), "plans holds 240 values that are not"),
     (lambda: maze_plots.plan_figure(UMAZE, fan(), None, [0, 0, 0, 0], GOAL), "start must have shape"),
     (lambda: maze_plots.plan_figure(UMAZE, fan(), None, START, GOAL, chosen=3), "one of the 3 plans"),
     (lambda: maze_plots.plan_grid(UMAZE, [fan()], [], [START], [GOAL]), "as many paths"),
     (lambda: maze_plots.denoising_strip(UMAZE, fan(), START, GOAL, ["one"]), "labels must be one for each of the 3"),
     (lambda: movie.animation(UMAZE, fan(), walk(), START, GOAL, "a.avi"), r"\.mp4 or \.gif"),
     (lambda: movie.animation(UMAZE, [(5, fan())], walk(), START, GOAL, "a.gif"), "rising from 0"),
     (lambda: maze_plots.coverage(UMAZE, np.zeros((0, 2))), "empty"),
     (lambda: curves.schedule_heatmap([[11, 3]], 10), r"levels in 0\.\.10, got 3\.\.11"),
     (lambda: curves.loss_curve([1, 2], [1.0]), r"train must have shape \[N\] = \[2\]"),
     (lambda: curves.bars_with_intervals([row(), row(task="other")], "score"), "draws one task")],
)
def test_wrong_input_is_answered_with_what_came_and_was_wanted(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_no_page_without_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        html.write_index(tmp_path / "nowhere")


def test_median_interval():
    assert median_interval(np.array([2.0])) == (2.0, 2.0, 2.0, 1)
    values = np.random.default_rng(1).normal(5, 1, 400)
    median, low, high, n = median_interval(values)
    assert (median, n) == (np.median(values), 400) and median_interval(values) == (median, low, high, n)
    # the median of n normal values has standard deviation sqrt(pi / 2 / n)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(np.pi / 2 / 400), rel=0.3)


def test_traces_draw_every_number_over_seconds_and_name_the_first_ones():
    wide, actions = np.random.default_rng(0).normal(size=(6, 9)), np.arange(10.0).reshape(5, 2)
    figure = traces({"state": ([f"j{i}" for i in range(9)], wide), "actions": (["x", "y"], actions)}, dt=0.5,
                    mark=("success", 3))
    state, acted = figure.axes
    drawn = {line.get_label(): line for line in acted.lines}
    np.testing.assert_array_equal(drawn["y"].get_xydata(), np.stack([np.arange(5) * .5, actions[:, 1]], 1))
    assert len(state.lines) == 9 + 1 and state.lines[-1].get_xdata()[0] == 1.5
    legend = state.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [f"j{i}" for i in range(7)]
    assert legend.get_title().get_text() == "and 2 more, grey"
    with pytest.raises(ValueError, match="at least one group"):
        traces({})
    with pytest.raises(ValueError, match=r"state must have shape \[T, 3\]"):
        traces({"state": (["a", "b", "c"], wide)})
