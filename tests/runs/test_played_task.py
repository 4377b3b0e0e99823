"""Which task a policy plays: a checkpoint names one of dforce's, a user any, and what is none is told in one line."""

import json
from pathlib import Path

import pytest

from dforce.runs.imitation import load_policy, played_task, see_it_act
from dforce.train.checkpoint import find

SWAP = {"env": "dforce/Swap-v0", "env_settings": {"noise": 0.002, "menagerie": "/home", "render_mode": "human"}}


def test_the_task_of_the_data_has_the_settings_that_data_may_name() -> None:
    name, make = played_task(SWAP)
    assert name == "dforce/Swap-v0" and make.keywords == {"noise": 0.002}
    assert played_task(SWAP, "dforce/Count-v0")[1].keywords == {}


@pytest.mark.parametrize("named", ["antigravity:any/Thing-v0", "CartPole-v1", None])
def test_a_checkpoint_names_no_other_environment(named: str | None) -> None:
    with pytest.raises(ValueError, match="no task of dforce: name one with env=module:name"):
        played_task({"env": named, "env_settings": {}})


@pytest.mark.parametrize("named", ["nothing/Reach-v0", "no_such_module:Reach-v0", "dforce/Swap-v9"])
def test_what_cannot_be_made_is_told_in_one_line(named: str) -> None:
    pytest.importorskip("mujoco")
    with pytest.raises(ValueError, match=f"^env={named} cannot be made .* env=module:name$"):
        played_task(SWAP, named)[1]()


def test_a_policy_is_recommended_to_what_can_play_it(tmp_path: Path) -> None:
    shipped = find("swap")
    assert see_it_act(shipped) == f"dforce evaluate robot checkpoint={shipped}"
    assert load_policy("swap")[1]["env"] == "dforce/Swap-v0"
    layout = json.loads((shipped / "layout.json").read_text())
    (tmp_path / "MANIFEST.json").write_text((shipped / "MANIFEST.json").read_text())
    (tmp_path / "layout.json").write_text(json.dumps({**layout, "env": "me/Reach-v0"}))
    assert see_it_act(tmp_path).startswith("dforce.policy.evaluation.run_policy")
