"""The arrows of the house: which room may import which. Read from the source, imports inside functions too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The floors from the bottom up. A room may import the rooms of the floors below its own, and none of its own floor.
FLOORS = (
    ("config", "configs", "envs"),
    ("core",),
    ("guidance", "nets", "data", "report"),
    ("policy", "train"),
    ("runs",),
    ("align",),
    ("planning", "images", "video"),  # the pillars that are tuned with align
    ("benchmarks",),
    ("cli",),
    ("__init__", "__main__"),  # the package itself: what it lends to a user, and `python -m dforce`
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
LEAVES = {"core": set(), "nets": {"core"}, "report": set(), "envs": set(), "config": set(),
          "policy": {"core", "data", "guidance"}}
# Room -> the only third-party packages that it may import.
THIRD = {
    "core": {"torch", "einops", "numpy"},
    "guidance": {"torch", "einops", "numpy"},
    "policy": {"torch", "numpy", "websockets", "msgpack"},
    "nets": {"torch", "einops", "diffusers"},
    "envs": {"gymnasium", "mujoco", "numpy", "gymnasium_robotics", "ogbench", "vizdoom"},
}
# Package -> the only places that may import it.
PLACES = {
    "gymnasium": ("envs", "dforce/data", "dforce/benchmarks/robot"),  # data: the spaces of Minari's files
    "mujoco": ("envs",),
    "gymnasium_robotics": ("envs",),
    "ogbench": ("envs",),
    "vizdoom": ("envs",),
    "diffusers": ("dforce/nets/diffusers.py", "dforce/images/pipeline_families.py",
                  "dforce/video/latents.py"),
    "omegaconf": ("dforce/cli", "dforce/config/values.py"),
    "hydra": ("dforce/cli",),
}


def sources(root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file, of all of dforce; the top-level folders envs and configs as they are imported."""
    out = {}
    for top in ("dforce", "envs", "configs"):
        for file in sorted((root / top).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts if top == "dforce" else ("dforce", *parts))
            out[name.removesuffix(".__init__")] = file
    return out


def imported(file: Path, root: Path = ROOT) -> set[str]:
    """Absolute names that a file imports, inside functions too: of `from a import b` both a and a.b.

    Relative imports, which the folder envs needs to be importable by both its names, are made absolute.
    """
    folder = file.relative_to(root).parts[:-1]
    package = folder if folder[0] == "dforce" else ("dforce", *folder)
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = [*package[:len(package) - node.level + 1]] if node.level else []
            origin = ".".join([*parts, *([node.module] if node.module else [])])
            names |= {origin} | {f"{origin}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str:
    """The room of a module of dforce; that of the package itself is __init__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def inner(file: Path, modules: Mapping[str, Path]) -> set[str]:
    """The modules of dforce that a file imports: `from a import b` is a.b where that is a module, else a."""
    names = {name for name in imported(file) if name in modules}
    return {name for name in names if not any(other.startswith(f"{name}.") for other in names)}


def circles(arrows: Mapping[str, set[str]]) -> list[str]:
    """One line for every arrow that closes a circle."""
    state: dict[str, int] = {}
    closed = []
    for start in arrows:
        if start in state:
            continue
        state[start] = 1
        walk = [(start, iter(sorted(arrows[start])))]
        while walk:
            name, rest = walk[-1]
            target = next(rest, None)
            if target is None:
                state[name] = 2
                walk.pop()
            elif state.get(target) == 1:
                closed.append(f"{name} -> {target}")
            elif target not in state:
                state[target] = 1
                walk.append((target, iter(sorted(arrows.get(target, set())))))
    return closed


MODULES = sources()


def test_every_room_has_its_place() -> None:
    """A new room is refused until a floor names it, and a floor names no room that is gone."""
    assert {room_of(name) for name in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    room, file = room_of(module), MODULES[module]
    for target in inner(file, MODULES):
        other = room_of(target)
        if other == room or (other == "__init__" and target == "dforce"):  # `import dforce`: the version alone
            continue
        assert FLOOR[other] < FLOOR[room], f"{module} must not import {target}: {other} is not below {room}"
        assert other in LEAVES.get(room, {other}), f"{module} must not import {target}: {room} stands for itself"


@pytest.mark.parametrize("module", MODULES)
def test_other_peoples_packages_stay_in_their_places(module: str) -> None:
    room, file = room_of(module), MODULES[module]
    outer = {name.split(".")[0] for name in imported(file)} - set(sys.stdlib_module_names) - {"dforce"}
    if room in THIRD:
        assert outer <= THIRD[room], f"{module} must not import {sorted(outer - THIRD[room])}"
    place = file.relative_to(ROOT).as_posix()
    for package in outer & set(PLACES):
        assert place.startswith(PLACES[package]), f"{module} must not import {package}; {PLACES[package]} may"


def test_no_circle_of_modules_and_none_of_rooms() -> None:
    arrows = {module: inner(file, MODULES) - {module, "dforce"} for module, file in MODULES.items()}
    assert circles(arrows) == []
    rooms: dict[str, set[str]] = {}
    for module, targets in arrows.items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, targets))
    assert circles({room: targets - {room} for room, targets in rooms.items()}) == []


def test_the_reader_sees_every_form_and_every_circle(tmp_path: Path) -> None:
    file = tmp_path / "dforce" / "data" / "x.py"
    file.parent.mkdir(parents=True)
    file.write_text("from dforce import envs\nfrom .batch import a\nfrom .. import b\ndef f():\n  import torch.nn\n")
    names = {"dforce", "dforce.envs", "dforce.data.batch", "dforce.data.batch.a", "dforce.b", "torch.nn"}
    assert imported(file, tmp_path) == names
    assert sources(tmp_path) == {"dforce.data.x": file}
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "b"}}) == ["c -> a", "c -> b"]
