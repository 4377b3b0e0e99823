"""What is shipped: all of dforce, with envs/ and configs/ inside it, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"dforce": "dforce", "envs": "dforce/envs", "configs": "dforce/configs"}  # in the checkout -> in the wheel


def sources() -> list[Path]:
    kinds = ".py", ".yaml", ".xml", ".html", ".txt"
    return [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in kinds]


def shipped_as(file: Path) -> str:
    folder, *rest = file.relative_to(ROOT).parts
    return "/".join([FOLDERS[folder], *rest])


def test_pyproject_lists_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {Path(shipped_as(file)).parent.as_posix().replace("/", ".") for file in sources() if file.suffix == ".py"}
    assert sorted(listed) == sorted(found)


@pytest.mark.slow
def test_wheel(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    tree = tmp_path / "tree"  # a copy: a build folder of an earlier time would be packed too
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*command, str(tree)], check=True, timeout=240)
    (wheel,) = tmp_path.glob("dforce-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dforce"}  # dforce and dforce-*.dist-info
    content = {name for name in names if ".dist-info/" not in name}
    models = {file.relative_to(ROOT).as_posix() for file in (ROOT / "dforce" / "pretrained").glob("*/*")}
    assert models and content == {shipped_as(file) for file in sources()} | {"dforce/py.typed"} | models
    entry = next(name for name in names if name.endswith("entry_points.txt"))
    assert b"dforce = dforce.cli.main:main" in zipfile.ZipFile(wheel).read(entry)
