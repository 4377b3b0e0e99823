"""README, guides and result pages: their code runs, their commands compose, their figures stand in the result files."""

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dforce.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = sorted((ROOT / "docs").glob("*.md"))
WRITTEN = [ROOT / "README.md", *GUIDES]                                                  # by hand
ALL = [*WRITTEN, *sorted((ROOT / "docs" / "results").rglob("*.md"))]                     # with the generated pages
QUOTED = re.compile(r"(-?\d*\.?\d+) \[(-?\d*\.?\d+),\s+(-?\d*\.?\d+)\]")                 # value [low, high]


def pieces(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)


def commands(file: Path) -> Iterator[str]:
    """The lines that call `dforce`, in blocks of code, a line that ends in a backslash joined to the next."""
    page = file.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in page.splitlines():
        if match := re.match(r"(?:    )?(?:PYTHONPATH=\. )?(dforce \w.*)", line):
            yield match[1]


def prose(file: Path) -> str:
    """A page without its code, its generated tables, and what it says to have measured without a results file."""
    page = file.read_text(encoding="utf-8").split("## Measured without a results file")[0]
    page = re.sub(r"<!-- table .*?<!-- end -->|```.*?```|`[^`]*`", "", page, flags=re.DOTALL)
    return re.sub(r"\s*\n\s*", " ", page)


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", page, re.M)}


def test_readme_is_short() -> None:
    assert README.count("\n") <= 130


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    code, count = re.subn(r"\bsteps=(\d{3,})", "steps=3", pieces(README, "python")[0])
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert count == 1 and names["path"].shape == (8, 200, 2) and (tmp_path / "circle.png").is_file()


@pytest.mark.slow
def test_the_example_stays_on_the_circle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(pieces(README, "python")[0], "README.md", "exec"), names)
    path = names["path"]
    assert path.shape == (8, 200, 2) and (tmp_path / "circle.png").is_file()
    assert abs(path.norm(dim=-1).mean() - 1) < 0.15
    step = (path[:, 1:] * path[:, :-1]).sum(-1) / (path[:, 1:].norm(dim=-1) * path[:, :-1].norm(dim=-1))
    assert abs(step.clamp(-1, 1).acos().mean() - 0.3) < 0.06  # it walks on, at the speed of the data


@pytest.mark.slow
def test_the_planner_that_ships_plans_as_written() -> None:
    names: dict = {}
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    exec(compile(next(code for code in pieces(page, "python") if "dforce.load" in code), "planning.md", "exec"), names)
    states = names["plan"].states[0]
    assert states.shape == (300, 4)
    assert ((states[:10, :2] - [3.0, 2.0]) ** 2).sum(-1).max() ** 0.5 < 0.7             # it begins where the ball is,
    assert ((states[:, :2] - names["goal"]) ** 2).sum(-1).min() ** 0.5 < 0.5            # and comes by the goal


@pytest.mark.slow
def test_the_small_files_to_try_it_with_are_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    inline = re.search(r"python - <<END[^\n]*\n(.*?)\nEND\n", README, re.DOTALL)
    guide = pieces((ROOT / "docs" / "video.md").read_text(encoding="utf-8"), "python")[0]
    assert inline is not None
    for code, films in ((inline[1], 80), (guide, 100)):
        exec(compile(code, "page", "exec"), {})
        assert len(list(tmp_path.glob("clips/*.gif"))) == films
    assert {len(list(folder.iterdir())) for folder in (tmp_path / "images").iterdir()} == {40}


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.name)
def test_commands_compose(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every key of every command is known, and every value fits; nothing runs."""
    for command in commands(file):
        assert main([*shlex.split(command, comments=True)[1:], "--cfg", "job"]) == 0, (command, capsys.readouterr().err)


def test_generated_pages_and_tables_are_what_the_result_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / "scripts" / "release" / "tables.py"), run_name="__main__")
    assert end.value.code == 0


def test_every_results_file_stands_on_a_page_and_every_page_of_theirs_is_generated() -> None:
    pages = yaml.safe_load((ROOT / "docs" / "results" / "pages.yaml").read_text(encoding="utf-8"))["pages"]
    specs = [spec for page in pages.values() for section in page["sections"] for spec in section["tables"]]
    shown = {spec.split(": ", 1)[-1].split()[0] for spec in specs}
    assert shown == {file.name for file in (ROOT / "docs" / "results").glob("*.json")}
    assert {file.stem for file in (ROOT / "docs" / "results" / "pages").iterdir()} == set(pages)


def test_an_interval_in_prose_is_that_of_a_row() -> None:
    files = [json.loads(file.read_text(encoding="utf-8")) for file in (ROOT / "docs" / "results").glob("*.json")]
    measured = np.array([[row["value"], row["low"], row["high"]] for file in files for row in file["rows"]
                         if row["value"] is not None and row["low"] is not None])
    measured = np.concatenate([measured, -measured[:, [0, 2, 1]]])                       # ahead by, or behind by
    for file in WRITTEN:
        for quoted in QUOTED.finditer(prose(file)):
            digits = max(len(number.partition(".")[2]) for number in quoted.groups())
            off = np.abs(measured - [float(number) for number in quoted.groups()]).max(-1).min()
            assert off <= 0.5 * 10.0**-digits + 1e-6, f"{file.name}: {quoted[0]} is {off:.3g} from the nearest row"


@pytest.mark.parametrize("file", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_tables_are_narrow_and_links_lead_somewhere(file: Path) -> None:
    page = file.read_text(encoding="utf-8")
    widths = [line.count(" | ") + 1 for line in page.splitlines() if line.startswith("| ---")]
    assert max(widths, default=0) <= 8
    links = re.findall(r"\]\((?!http)([^)\s]*)\)", page) + re.findall(r'<img src="([^"]+)"', page)
    for link in links:
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_picture_is_shown() -> None:
    pages = "".join(file.read_text(encoding="utf-8") for file in ALL)
    assert [file.name for file in (ROOT / "docs" / "img").iterdir() if file.name not in pages] == []
