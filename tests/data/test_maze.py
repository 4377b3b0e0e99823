"""`dforce data maze`: every maze, sparse and dense, and grids of one's own from the command line or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dforce.cli.main import main
from dforce.data import list_datasets, load_episodes
from dforce.data.minari import read_metadata
from dforce.envs import MAZES, maze_reward

GRID = "#####/#OOG#/#####"


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def made(*arguments: str) -> int:
    return main(["data", "maze", "steps=2000", *arguments])


@pytest.mark.parametrize("maze", [pytest.param(maze, marks=[pytest.mark.slow] * (maze != "medium"))
                                  for maze in sorted(MAZES)])
@pytest.mark.slow
def test_every_maze_sparse_and_dense(maze: str, _store: Path) -> None:
    assert made(f"maze={maze}", "dense=true") == 0
    sparse, dense = (load_episodes(f"dforce/maze2d-{maze}{suffix}-v1", infos=["goal"]) for suffix in ("", "-dense"))
    np.testing.assert_array_equal(dense.observations, sparse.observations)
    np.testing.assert_array_equal(dense.infos["goal"], sparse.infos["goal"])
    for e in range(len(sparse)):  # the reward of the state that an action led to
        observations, _, rewards = dense.episode(e)
        np.testing.assert_allclose(rewards, np.exp(-np.hypot(*(observations[1:, :2] - MAZES[maze].goal).T)))
        np.testing.assert_array_equal(sparse.episode(e)[2], maze_reward(observations[1:, :2], MAZES[maze].goal))
    metadata = read_metadata(_store / f"dforce/maze2d-{maze}-dense-v1")
    assert metadata["ref_max_score"] == pytest.approx(MAZES[maze].dense_ref_max)
    assert f"dforce/maze2d-{maze}-dense-v1" in metadata["env_spec"] and dense.about["env"] == f"maze2d-{maze}"
    assert made(f"maze={maze}", "dense=true") == 0  # equal ones are left as they are
    assert made(f"maze={maze}", "dense=true", "seed=1") == 2
    assert made(f"maze={maze}", "dense=true", "seed=1", "overwrite=true") == 0
    assert load_episodes(f"dforce/maze2d-{maze}-dense-v1").about["seed"] == 1


@pytest.mark.slow
def test_a_grid_of_ones_own_from_the_command_line_and_from_a_file(tmp_path: Path) -> None:
    assert made(f"maze='{GRID}'", "name=dforce/mine-v0") == 0
    assert load_episodes("dforce/mine-v0").about["rows"] == GRID.split("/")
    (tmp_path / "corner.txt").write_text("####\n#OG#\n#O##\n####\n")
    assert made("maze=corner.txt") == 0 and made(f"maze='{GRID}'", "dense=true") == 0
    assert made(f"maze='{GRID}'", "dense=true", "name=dforce/near-v2", "seed=1") == 0
    names = list_datasets()
    custom = [name for name in names if name.startswith("dforce/maze2d-custom-")]
    assert len(custom) == 3 and {"dforce/near-v2", "dforce/near-sparse-v2"} < set(names)  # each grid has its own name
    rows = {name: tuple(load_episodes(name).about["rows"]) for name in custom}
    assert len(set(rows.values())) == 2
    assert np.unique(load_episodes("dforce/near-v2").rewards).size > 100


@pytest.mark.parametrize(("maze", "message"), [
    ("nowhere.txt", "unknown maze 'nowhere.txt'"),
    ("broken.txt", "not closed by walls"),
    ("'#####/#OO##/####'", "not rectangular"),
    ("'OOO/OGO/OOO'", "has no walls '#'"),
])  # fmt: skip
def test_what_is_no_maze(maze: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.txt").write_text("####\n#OGO\n####\n")
    assert made(f"maze={maze}") == 2
    assert message in capsys.readouterr().err and not list_datasets()


def test_steps_are_d4rls_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {}
    monkeypatch.setattr("dforce.data.generate.maze.make_maze_dataset", lambda **given: taken.update(given) or "name")
    monkeypatch.setattr("dforce.planning.dataset_report.report_dataset", lambda *told: None)  # there is no such data
    for maze, steps in (("umaze", 1_000_000), ("medium", 2_000_000), ("large", 4_000_000), ("open", 1_000_000)):
        assert main(["data", "maze", f"maze={maze}"]) == 0 and taken["steps"] == steps
