"""What of a data set is learnt, and where what was learnt can plan."""

from pathlib import Path

import numpy as np
import pytest

from dforce.data import load_episodes
from dforce.data.episodes import pack
from dforce.planning.tasks import next_command, task_of, trained_task
from dforce.runs.trajectory_training import without_goals
from dforce.train.checkpoint import CheckpointError, load

PLANAR = {"observation": [2, 6], "action": [0, 2], "dataset": "maze2d-umaze-sparse-v1"}


def test_of_a_goal_environment_the_observation_alone_is_learnt(tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    minari, spaces = pytest.importorskip("minari"), pytest.importorskip("gymnasium").spaces
    from minari.data_collector import EpisodeBuffer

    from dforce.data.store import staged

    box, draw = (lambda width: spaces.Box(-9, 9, (width,), np.float64)), np.random.default_rng(0)
    space = spaces.Dict({"achieved_goal": box(2), "desired_goal": box(2), "observation": box(4)})
    rows = {"achieved_goal": draw.normal(size=(6, 2)), "desired_goal": np.ones((6, 2)),
            "observation": draw.normal(size=(6, 4))}
    flags = np.zeros(5, bool)
    with staged("D4RL/pointmaze/mine-v0", root=tmp_path, overwrite=False):
        minari.create_dataset_from_buffers("D4RL/pointmaze/mine-v0", [EpisodeBuffer(
            id=0, observations=rows, actions=np.zeros((5, 2)), rewards=np.zeros(5), terminations=flags,
            truncations=flags)], observation_space=space, action_space=box(2), data_format="hdf5",
            jpeg_encoding=False, author="x", author_email="x", code_permalink="x", algorithm_name="x", description="x")
    whole = load_episodes(tmp_path / "D4RL/pointmaze/mine-v0")
    learnt = without_goals(whole)
    assert whole.observations.shape == (6, 8) and np.array_equal(learnt.observations, rows["observation"])
    assert learnt.names()[0] == [f"observation[{i}]" for i in range(4)]
    assert "only the key `observation`" in capsys.readouterr().out
    plain = pack(np.zeros((1, 6, 3)), np.zeros((1, 5, 1)), np.zeros((1, 5)))
    assert without_goals(plain) is plain


def test_a_checkpoint_plans_in_the_maze_that_is_named() -> None:
    """A D4RL file does not say which maze it is of; PointMaze's data do, by the id of their environment."""
    shipped = load("maze2d-umaze")
    layout = {key: value for key, value in shipped.layout.items() if key not in ("env", "rows")}
    silent = shipped._replace(layout=layout)
    assert task_of(silent, "umaze").name == "maze2d-umaze" and task_of(silent, "medium").name == "maze2d-medium"
    assert task_of(silent, "#####/#OOG#/#####").name.startswith("maze2d-custom")
    with pytest.raises(CheckpointError, match="not on a maze that is known; if its data are of a maze, name that"):
        task_of(silent)
    with pytest.raises(ValueError, match="did you mean 'umaze'"):
        task_of(silent, "umze")
    hopper = shipped._replace(layout={**layout, "observation": [3, 14], "action": [0, 3], "env": "Hopper-v5"})
    with pytest.raises(CheckpointError, match="observations of 4 and actions of 2 numbers, .* Hopper-v5 with 11 and 3"):
        task_of(hopper, "umaze")
    pytest.importorskip("gymnasium_robotics")
    for env in ("PointMaze_UMaze-v3", "PointMaze_UMazeDense-v3"):
        assert trained_task({**layout, "env": env}).name == "pointmaze-umaze"


def test_only_what_works_is_recommended() -> None:
    assert next_command({**PLANAR, "env": "maze2d-umaze"}, "runs/x").endswith("dforce plan checkpoint=runs/x")
    assert next_command(PLANAR, "runs/x").endswith("dforce plan checkpoint=runs/x maze=umaze")
    hopper = next_command({"observation": [3, 14], "action": [0, 3], "env": "Hopper-v5"}, "runs/x")
    assert "dforce plan" not in hopper and hopper.endswith("dforce.load('runs/x')")
