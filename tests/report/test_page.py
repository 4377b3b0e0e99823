"""Pages of runs begin with what came out, on every verb's data; no browser scrolls them sideways."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from dforce.report import html
from dforce.report.brief import COLUMNS, brief_tables, few_metrics, sentence
from dforce.report.rows import Row, difference_row, make_row, write_results
from dforce.report.statistics import Interval
from dforce.report.table import digits_for, tabulate
from tests.page_rules import check_page

HEADER = {"command": "dforce plan checkpoint=x", "commit": "c0ffee", "versions": {}, "machine": {}, "seconds": 1.5,
          "peak_memory_mb": 9.0}
PLANNING = ("score", "success", "first_reach", "return", "score_latched", "wall_contact", "plan_in_wall")
ROLLOUT = ("frames per second", "frechet", "frechet / floor", "brightness / real", "contrast / real", "change / real",
           "broken off", "frozen windows", "psnr", "ssim", "bad frames")


def one(method: str, metric: str, value: float, spread: float | None = 0.5, task: str = "umaze",
        **variant: object) -> Row:
    estimate = value if spread is None else Interval(value, value - spread, value + spread, 20)
    return make_row(task, method, metric, estimate, n=20, variant=variant, higher=True)


def demo_rows() -> list[Row]:
    """As many methods, executors, metrics and starts as the demo has."""
    executors = [{"hold": True, "pace": 1.0}, {"hold": False, "pace": 1.0}, {"hold": True, "pace": 1.5}]
    rows = [one(method, metric, 10.0 * i + j, starts=starts, **executor)
            for i, method in enumerate(("retrieval", "unguided", "full sequence", "guided", "MCTG"))
            for executor in executors for j, metric in enumerate(PLANNING) for starts in ("all", "blocked")]
    ends = np.arange(20.0)
    return rows + [difference_row("umaze, paired differences", "MCTG - guided", "score", ends + 3, ends,
                                  variant={"starts": starts}) for starts in ("all", "blocked")]


def write_run(folder: Path, status: str, rows: list[Row] | None, *, losses: bool = False, media: tuple[str, ...] = (),
              command: str = HEADER["command"]) -> Path:
    (folder / "media").mkdir(parents=True)
    (folder / "STATUS").write_text(status + "\n")
    (folder / "env.json").write_text(json.dumps({"command": command, "time": "2026-01-01T00:00:00+00:00"}))
    (folder / "config.yaml").write_text("seed: 0\nfast_dev_run: true\n")
    if rows is not None:
        write_results(folder / "results.json", HEADER | {"command": command}, rows)
    if losses:
        lines = [{"step": step, "seconds": step / 10, "loss": 1 / step, "val_loss": 2 / step} for step in (1, 2, 3)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, name in enumerate(media):
        iio.imwrite(folder / "media" / name, np.zeros((4, (40, 1400)[number % 2], 3), np.uint8))
    return folder


RUNS = {
    "demo": ("done", demo_rows(), {"losses": True, "media": ("plan.png", "grid.png", "score.png")}),
    "rollout": ("done", [one("forcing", metric, 1.0, task="balls", frames=f"{begin}-{begin + 100}")
                         for metric in ROLLOUT for begin in (0, 100)], {"media": ("strip.png",)}),
    "train": ("done", None, {"losses": True, "media": ("loss.png", "errors.png")}),
    "data": ("done", [one("demonstrations", "episodes", 30, None)], {"media": ("coverage.png",)}),
    "failed": ("failed: loss is nan at step 7", None, {"losses": True}),
    "stopped": ("stopped: 3 jobs are left", demo_rows(), {}),
    "begun": ("running", None, {}),
    "bare": ("done", None, {}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_page_begins_with_what_came_out_and_leaves_nothing_empty(tmp_path: Path, name: str) -> None:
    status, rows, more = RUNS[name]
    check_page(html.write_index(write_run(tmp_path / name, status, rows, **more)))


def test_pages_say_how_a_run_ended_and_how_to_go_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "one", "failed: loss <nan> at step 7", None, losses=True,
                       command="dforce train image data=x")
    text = html.write_index(folder).read_text()
    assert "<h1>train image · one</h1>" in text and "Failed: loss &lt;nan&gt; at step 7." in text
    assert "Trained for 3 steps: the training loss is 0.333, the held-out loss 0.667" in text and "resume=" not in text
    (folder / "checkpoints" / "step_00000003").mkdir(parents=True)
    assert f"The same command with resume={folder} goes on." in html.write_index(folder).read_text()


def test_the_rest_of_the_results_is_behind_a_fold(tmp_path: Path) -> None:
    rows = demo_rows()
    text = html.write_index(write_run(tmp_path / "one", "done", rows)).read_text()
    before, _, fold = text.partition("<details>")
    assert "first_reach" not in before and "score" in before
    fold = fold.partition("</details>")[0]
    assert fold.count("<tr>") == len(rows) + 1 and "first_reach, blocked starts" in fold


def test_small_pictures_are_enlarged_and_broad_ones_have_the_whole_width(tmp_path: Path) -> None:
    media = ("plan.png", "grid.png", "loss.png")
    text = html.write_index(write_run(tmp_path / "one", "done", None, media=media)).read_text()
    pattern = r'<figure( class="wide")?><img src="media/(\w+).png"[^>]*?( class="fine")?(?: loading)'
    assert re.findall(pattern, text) == [
        ("", "plan", ' class="fine"'), (' class="wide"', "grid", ""), ("", "loss", ' class="fine"')]


# --------------------------------------------------------------------------------------------- few metrics first


def test_few_metrics_of_every_task_and_differences_apart() -> None:
    rows = demo_rows() + [one("a", "mine", 1.0, task="other"), one("a", "yours", 1.0, task="other")]
    assert {row["metric"] for row in few_metrics(rows) if row["task"] == "umaze"} == {"score", "success"}
    tables = {made.title: made for made in brief_tables(rows)}
    assert [*tables] == ["other", "umaze", "umaze: differences between methods"]
    assert all(len(made.headings) <= COLUMNS for made in tables.values())
    assert tables["other"].headings == ["mine (n=20) ↑", "yours (n=20) ↑"]


def test_whole_plans_are_told_before_planned_places_and_what_a_robot_reached_before_its_latency() -> None:
    planning, robot = ("plan_in_wall", "leaps", "in_wall", "success"), ("latency_p50", "held", "reached")
    for metrics, wanted in ((planning, ["success", "in_wall", "leaps"]), (robot, ["reached", "held"])):
        rows = few_metrics([one("a", metric, 1.0) for metric in metrics])
        assert [row["metric"] for row in rows] == wanted


def test_best_is_bold_only_where_it_is_clear() -> None:
    """By intervals that do not meet, or by the paired difference of the same starts."""
    def bold(rows: list[Row]) -> list[bool]:
        return [cells[0].best for cells in tabulate(rows)[0].cells]

    near = [one("a", "score", 5.0, 2.0), one("b", "score", 4.0, 2.0)]
    assert bold([one("a", "score", 5.0, 0.4), one("b", "score", 4.0, 0.4)]) == [True, False]
    assert bold(near) == [False, False] and bold([one("a", "score", 5.0, None), near[1]]) == [False, False]
    noise, ends = np.random.default_rng(0).normal(size=20), np.arange(20.0)
    assert bold([*near, difference_row("umaze", "a - b", "score", ends + 1, ends)])[:2] == [True, False]
    assert bold([*near, difference_row("umaze", "b - a", "score", ends, ends + 1)])[:2] == [True, False]
    assert bold([*near, difference_row("umaze", "a - b", "score", noise, noise[::-1])])[:2] == [False, False]


def test_the_sentence_says_what_is_clear_and_what_is_not() -> None:
    assert sentence([]) == ""
    assert sentence([one("a", "score", 3.0)]) == "umaze: score of a is 3.00 [2.50, 3.50]."
    clear = [one("a", "score", 3.0), one("b", "score", 9.0), one("c", "score", 5.0)]
    assert sentence(clear) == "umaze: b has the highest score, 9.00 [8.50, 9.50]; next is c with 5.00 [4.50, 5.50]."
    near = [one("a", "score", 3.0), one("b", "score", 3.2)]
    assert sentence(near) == ("umaze: score does not clearly tell b (3.20 [2.70, 3.70]) from a (3.00 [2.50, 3.50]).")
    ends = np.arange(20.0)
    gain = difference_row("umaze", "tuned - base", "reward", ends + 2, ends)
    assert sentence([*near, gain]) == "tuned - base: reward clearly differs, by 2 [2, 2]."


@pytest.mark.parametrize("values, digits", [([30.0, 1200.0], 0), ([1.0, 0.0], 0), ([0.5, 1e-9], 5), ([150.0, 0.02], 2),
                                            ([2.5, 0.004], 3), ([0.123], 3), ([99.96], 0)])
def test_a_number_near_zero_does_not_blow_up_the_digits_of_its_column(values: list[float], digits: int) -> None:
    assert digits_for([one("a", "score", value, None) for value in values]) == digits


def test_a_number_that_its_interval_does_not_tell_from_zero_needs_no_digits() -> None:
    assert digits_for([one("a", "score", 3.0), one("b", "score", 1e-4, 0.5)]) == 2


# --------------------------------------------------------------------------------------------- in a browser


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_no_page_scrolls_sideways(tmp_path: Path) -> None:
    """Neither the page nor a table or a block of text in it, folds open, in a window of 1,280 pixels."""
    script = ("<script>document.querySelectorAll('details').forEach(one => one.open = true); document.title = "
              "[...document.querySelectorAll('html, .scroll, pre')].every(one => one.scrollWidth <= one.clientWidth) "
              "? 'fits' : 'scrolls'</script></body>")
    for name, (status, rows, more) in RUNS.items():
        file = html.write_index(write_run(tmp_path / name, status, rows, **more))
        file.write_text(file.read_text().replace("</body>", script))
        shown = subprocess.run(["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900",
                                "--dump-dom", file.as_uri()], capture_output=True, text=True, check=True).stdout
        assert "<title>fits</title>" in shown, name
