"""`dforce train` on the data of every kind of task, and `dforce plan`, which finds the task from the checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from dforce.cli.main import main
from dforce.planning.tasks import get_task, trained_task
from dforce.report.rows import read_results
from dforce.train.checkpoint import load

SMALL = ["horizon=100", "batch=8", "net.width=16", "fast_dev_run=true"]


@pytest.mark.slow
@pytest.mark.parametrize("name, package, columns", [
    ("pointmaze-umaze", "gymnasium_robotics", ["x", "y", "vx", "vy"]),
    ("ogbench-medium", "ogbench", ["x", "y"]),
])
def test_data_to_plan(name: str, package: str, columns: list[str], tmp_path: Path,
                      monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    task = get_task(name)
    assert main(["data", "maze", f"maze={name}", "steps=4004"]) == 0
    assert main(["train", f"data={task.make_data(steps=4004)}", *SMALL, "out=model"]) == 0
    layout = load("model").layout
    assert layout["names"][2:] == columns and trained_task(layout).name == name
    assert main(["plan", "checkpoint=model", "fast_dev_run=true", "planner.draws=1", "planner.steps=3", "pictures=1",
                 "executor.arrive=0.3", "out=planned"]) == 0
    rows = read_results(tmp_path / "planned" / "results.json").rows
    assert {row["task"] for row in rows} == {name} and "score" not in {row["metric"] for row in rows}
    success = {row["method"]: row["value"] for row in rows
               if row["metric"] == "success" and row["variant"]["starts"] == "all"}
    assert success["controller"] == 1.0 and set(success) == {"random", "straight", "controller", "best of n"}
    gains = {row["variant"].get("gain_p") for row in rows if row["method"] == "best of n"}
    assert gains == {task.world.gains[0]}
    assert (tmp_path / "planned" / "media" / "grid.png").stat().st_size > 3_000  # at the few dots an inch of tests


def test_a_checkpoint_names_its_task() -> None:
    assert trained_task({"env": "maze2d-umaze"} | {"rows": ["#####"]}).name == "maze2d-umaze"
    grid = ["#####", "#OOG#", "#####"]
    assert trained_task({"env": "maze2d-custom", "rows": grid}).maze.rows == tuple(grid)
    with pytest.raises(ValueError, match="trained on pendulum, not on a maze"):
        trained_task({"env": "pendulum", "rows": grid})


@pytest.mark.slow
def test_what_a_recipe_fixes_cannot_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    assert main(["data", "maze", "maze=ogbench-giant", "noise=0", "seed=1"]) == 2
    assert "drop noise, seed" in capsys.readouterr().err
    assert main(["data", "maze", "maze=pointmaze-umza", "steps=2000"]) == 2
    assert "did you mean 'pointmaze-umaze'" in capsys.readouterr().err
    assert main(["data", "maze", "maze=multi2d-umaze", "steps=2000"]) == 0  # the data of maze2d
    assert (tmp_path / "minari" / "dforce" / "maze2d-umaze-v1").is_dir()
