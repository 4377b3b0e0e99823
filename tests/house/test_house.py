"""The rules of the house that a reader of the source can check: sizes, names, commands and their files."""

from __future__ import annotations

import ast
import collections
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = {file.relative_to(ROOT): file.read_text("utf-8")
         for top in ("dforce", "envs") for file in sorted((ROOT / top).rglob("*.py"))}
TREES = {file: ast.parse(text) for file, text in FILES.items()}
COMMANDS = Path("dforce", "cli", "commands")
LINES, FUNCTION, COMMAND = 250, 40, 60


@pytest.mark.parametrize("file", FILES, ids=str)
def test_nothing_is_too_long(file: Path) -> None:
    lines = len(FILES[file].splitlines())
    assert lines <= (COMMAND if file.parent == COMMANDS else LINES)
    long = {f"line {node.lineno}, {node.name}": size for node in ast.walk(TREES[file])
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and (size := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION}
    assert not long


def test_a_configuration_is_read_by_commands_alone() -> None:
    """Below the command line and dforce/config nothing takes a `cfg`: values have types."""
    takers = [f"{file}:{node.lineno}" for file, tree in TREES.items() for node in ast.walk(tree)
              if isinstance(node, ast.arg) and node.arg == "cfg" and not {"cli", "config"} & set(file.parts)]
    assert not takers


def test_no_public_name_is_defined_twice() -> None:
    places = collections.defaultdict(list)
    for file, tree in TREES.items():
        if file.parts[0] == "dforce" and file.parent != COMMANDS:
            for node in tree.body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                    places[node.name].append(str(file))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_every_kind_of_a_verb_has_a_configuration_and_a_command_and_the_other_way_round() -> None:
    verbs = ROOT / "configs" / "verbs"
    kinds = {file.parent.name if file.stem == file.parent.name else f"{file.parent.name}_{file.stem}"
             for file in verbs.glob("*/*.yaml")}
    commands = {file.stem for file in (ROOT / COMMANDS).glob("*.py")} - {"__init__"}
    assert kinds == commands and len(kinds) > 10
    assert {path.suffix for path in verbs.rglob("*") if path.is_file() and path.parent.name != "verbs"} == {".yaml"}
    for file in verbs.glob("*/*.yaml"):
        assert file.read_text("utf-8").startswith("# @package _global_\n# "), f"{file} begins with what it does"


def test_every_command_is_run_of_a_configuration_and_a_call() -> None:
    for file, tree in TREES.items():
        if file.parent == COMMANDS and file.name != "__init__.py":
            runs = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
            assert [[arg.arg for arg in node.args.args] for node in runs] == [["cfg", "call"]], file
            changed = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Subscript)
                       and isinstance(node.ctx, (ast.Store, ast.Del)) and getattr(node.value, "id", "") == "cfg"]
            assert not changed, f"{file} changes cfg in line {changed}"


def test_a_denoisers_traits_are_never_guessed() -> None:
    """All that a sampler asks of a denoiser stands in the protocol: a default would hide that a wrapper lost it."""
    guesses = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and len(node.args) == 3:
                subject = ast.unparse(node.args[0])
                if re.search("denoiser", subject):
                    guesses.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
    assert not guesses


def test_variables_are_nouns() -> None:
    """`own`, `told`, `found` and `asked` say nothing of what they hold."""
    vague = {"own", "told", "found", "asked"}
    places = []
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else \
                node.arg if isinstance(node, ast.arg) else ""
            if name in vague:
                places.append(f"{file}:{node.lineno}: {name}")  # type: ignore[attr-defined]
    assert not places


def test_rows_of_results_are_built_in_one_place() -> None:
    for file, text in FILES.items():
        if file.parts[:2] != ("dforce", "report"):
            assert '"higher_is_better":' not in text, f"{file} builds a row by hand; dforce.report.rows.make_row does"
