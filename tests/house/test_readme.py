"""The README's Python runs as written, and its tables are what the result files say."""

import re
import runpy
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_runs_and_stays_on_the_circle() -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code is not None
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(code[1], "README.md", "exec"), names)
    path = names["path"]
    assert path.shape == (8, 200, 2)
    assert abs(path.norm(dim=-1).mean() - 1) < 0.15
    step = (path[:, 1:] * path[:, :-1]).sum(-1) / (path[:, 1:].norm(dim=-1) * path[:, :-1].norm(dim=-1))
    assert abs(step.clamp(-1, 1).acos().mean() - 0.3) < 0.06  # it walks on, at the speed of the data


def test_tables_are_what_the_result_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts" / "release" / "tables.py"), run_name="__main__")
    assert end.value.code == 0


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists(), link


def test_the_planner_that_ships_plans_as_written() -> None:
    code = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1]
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    states = names["plan"].states[0]
    assert states.shape == (300, 4)
    assert ((states[:10, :2] - [3.0, 2.0]) ** 2).sum(-1).max() ** 0.5 < 0.7             # it begins where the ball is,
    assert ((states[:, :2] - names["goal"]) ** 2).sum(-1).min() ** 0.5 < 0.5            # and comes by the goal
