"""Where a run took place: command, commit, versions, machine, memory. Imports nothing heavy."""

import importlib.metadata
import os
import platform
import resource
import shlex
import subprocess
import sys
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

PACKAGES = ("dforce", "torch", "numpy", "einops", "hydra-core", "gymnasium", "mujoco", "minari", "diffusers", "av")


def environment(command: str | None = None) -> dict[str, Any]:
    """Command, commit, versions and machine of this process. Imports nothing heavy."""
    return {"time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": command or shlex.join([*_program(Path(sys.argv[0])), *sys.argv[1:]]), "commit": _commit(),
            "versions": {"python": platform.python_version(), **_versions()}, "machine": _machine()}


def _program(file: Path) -> list[str]:
    """A program as a reader types it: a script by its path in the repository, not by that on this machine."""
    if file.suffix != ".py":
        return [file.name]
    parts = file.absolute().parts
    at = max((i for i, part in enumerate(parts) if part == "scripts"), default=len(parts) - 1)
    return ["python", "/".join(parts[at:])]


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far [MB = 2^20 bytes]."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@cache  # of the code that was loaded: what changes in the checkout from now on does not run here
def _commit() -> str | None:
    """Commit of the checkout, `+` if files changed since; without history, that in DFORCE_COMMIT, else None."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return os.environ.get("DFORCE_COMMIT") or None
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def _machine() -> dict[str, Any]:
    system = f"{platform.system()} {platform.machine()}"
    info: dict[str, Any] = {"system": system, "processor": _processor(), "cores": os.cpu_count()}
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        info["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    torch = sys.modules.get("torch")  # ask only where it is loaded: writing a folder must not load it
    if torch is not None and torch.cuda.is_available():
        info["gpu"] = torch.cuda.get_device_name()
    return info


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
