"""The arrows of the architecture: which part may import which. Read from the source, imports inside functions too."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = {
    "schedule", "transition", "noise", "tree", "denoiser", "matrix", "loss", "sample", "wavefront", "rollout",
    "guidance", "monte_carlo", "shared_draws", "history", "elbo", "denoising",
}  # fmt: skip
PILLARS = {"planning", "video", "images", "policy", "align"}
APPLICATION = {"cli", "verbs", "__main__", "__init__"}
# part -> the parts of dforce that it may import besides itself; one not named here: all but pillars and application
ALLOWED = {
    **{name: CORE for name in CORE},
    "schedule": set(),
    "transition": {"schedule"},
    "matrix": set(),
    "noise": set(),
    "tree": set(),
    "nets": set(),
    "data": {"envs"},
    "envs": set(),
    "report": set(),
    "config": set(),
    "progress": set(),
    "manual": set(),
    "configs": set(),
}
THIRD = {
    **{name: {"torch", "einops", "numpy"} for name in CORE},
    "nets": {"torch", "einops", "diffusers"},
    "envs": {"gymnasium", "mujoco", "numpy", "gymnasium_robotics", "ogbench", "vizdoom"},
}


def part_of(file: Path) -> str:
    inside = file.relative_to(ROOT).parts
    return inside[0] if inside[0] != "dforce" else Path(inside[1]).stem


def imported(file: Path) -> set[str]:
    """Absolute names that a file imports; relative ones are made absolute."""
    package = ["dforce", *file.relative_to(ROOT).parts[:-1]] if file.parts[-2] != "dforce" else ["dforce"]
    package = package[1:] if package[:2] == ["dforce", "dforce"] else package
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from dforce import envs` imports a part: the name says which
            names |= {f"{origin}.{alias.name}" for alias in node.names} if origin == "dforce" else {origin}
    return names


FILES = sorted(
    file for folder in ("dforce", "envs", "configs") for file in (ROOT / folder).rglob("*.py") if file.name[0] != "."
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports(file: Path) -> None:
    part, names = part_of(file), imported(file)
    inner = {name.split(".")[1] for name in names if name.startswith("dforce.")} - {part, "__version__"}
    if part not in APPLICATION:
        forbidden = inner - ALLOWED[part] if part in ALLOWED else inner & (PILLARS | APPLICATION)
        assert not forbidden, f"{part} must not import {sorted(forbidden)}"
    outer = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"dforce"}
    if part in THIRD:
        assert outer <= THIRD[part], f"{part} must not import {sorted(outer - THIRD[part])}"
    if part == "envs":
        assert not {name for name in names if name.startswith("dforce") and not name.startswith("dforce.envs")}


def test_the_reader_sees_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    file = tmp_path / "dforce" / "data" / "x.py"
    file.parent.mkdir(parents=True)
    lines = "from dforce import envs", "from .batch import a", "from .. import fit", "def f():", "  import torch.nn"
    file.write_text("\n".join(lines))
    assert imported(file) == {"dforce.envs", "dforce.data.batch", "dforce.fit", "torch.nn"}
