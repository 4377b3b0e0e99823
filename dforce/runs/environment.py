"""Where a run took place, and whether this machine has what runs need. Imports nothing heavy."""

import importlib
import importlib.metadata
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("dforce", "torch", "numpy", "einops", "hydra-core", "gymnasium", "mujoco", "minari", "diffusers", "av")
# module -> (distribution, what is lost without it)
MODULES = {"numpy": ("numpy", "everything"), "hydra": ("hydra-core", "the command line"),
           "gymnasium": ("gymnasium", "environments"), "mujoco": ("mujoco", "maze and robot physics"),
           "minari": ("minari", "data sets"), "h5py": ("h5py", "data sets"),
           "av": ("av", "video files (pictures and gifs work)"),
           "diffusers": ("diffusers", "pretrained diffusers models")}
EXTRAS = {  # extra of dforce -> modules that it brings
    "planning": ("gymnasium", "mujoco", "minari", "h5py"), "video": ("av", "websockets"), "doom": ("vizdoom",),
    "images": ("sklearn", "skimage"), "align": ("diffusers",),
    "robots": ("gymnasium_robotics", "msgpack", "pyarrow", "numcodecs"),
    "benchmarks": ("gymnasium_robotics", "ogbench"),
    "offline-rl": ("d3rlpy",), "slurm": ("submitit",)}
NEEDED = ("numpy", "hydra")
DISK_GB = 2.0  # a demo run with its data is far below; an install of a CUDA torch is not counted


def environment(command: str | None = None) -> dict[str, Any]:
    """Command, commit, versions and machine of this process. Imports nothing heavy."""
    return {"time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": command or shlex.join([*_program(Path(sys.argv[0])), *sys.argv[1:]]), "commit": _commit(),
            "versions": {"python": platform.python_version(), **_versions()}, "machine": _machine()}


def results_header(about: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What stands above rows of results: what `environment` said, how long they took, and the memory until now."""
    return {**{key: about[key] for key in ("command", "commit", "versions", "machine")}, "seconds": seconds,
            "peak_memory_mb": peak_memory_mb()}


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


class Finding(NamedTuple):
    """One line of the report. state: "ok", "warn" (works, with a loss) or "fail" (does not work)."""

    state: str
    name: str
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """All findings, the most basic first."""
    return [_python(), *_torch(), *map(_module, MODULES), _disk(), _write()]


def how_to_install(module: str) -> str:
    """The command that brings a module: `pip install` of the extra of dforce that it belongs to, or of itself."""
    extras = [extra for extra, modules in EXTRAS.items() if module in modules]
    return f"pip install 'dforce[{extras[0]}]'" if extras else f"pip install {MODULES.get(module, (module,))[0]}"


def _python() -> Finding:
    return Finding("ok", "python", f"{platform.python_version()} at {sys.executable}")  # pip refuses older ones


def _torch() -> list[Finding]:
    try:
        import torch

        from dforce.train.precision import choose
    except ImportError as error:
        return [Finding("fail", "torch", str(error), "pip install torch")]
    findings = [Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads")]
    if torch.cuda.is_available():
        findings.append(Finding("ok", "gpu", torch.cuda.get_device_name()))
    chosen = choose("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return [*findings, Finding("ok", "precision", f"{chosen.name}: {chosen.reason}")]


def _module(name: str) -> Finding:
    distribution, lost = MODULES[name]
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken shared library raises anything
        text = f"{type(error).__name__}: {error}; lost: {lost}".replace("\n", " ")
        return Finding("fail" if name in NEEDED else "warn", name, text, how_to_install(name))
    return Finding("ok", name, importlib.metadata.version(distribution))


def _disk() -> Finding:
    free = shutil.disk_usage(os.getcwd()).free / 2**30
    if free < DISK_GB:
        return Finding("warn", "disk", f"{free:.1f} GB free here", "free some space, or run from another disk")
    return Finding("ok", "disk", f"{free:.1f} GB free here")


def _write() -> Finding:
    """Can files be written here, for run folders, and in Minari's store, for data sets?"""
    store = Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    for place, fix in ((Path.cwd(), "run from a folder of yours"), (store, "set MINARI_DATASETS_PATH")):
        while not place.exists():
            place = place.parent
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(b"dforce")
        except OSError as error:
            return Finding("fail", "write", f"{place}: {error}", fix)
    return Finding("ok", "write", f"run folders in {Path.cwd() / 'runs'}, data sets in {store}")
