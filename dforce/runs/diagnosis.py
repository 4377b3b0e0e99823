"""What of an installation works, and one line that mends what does not."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

# module -> (distribution, what is lost without it)
MODULES = {"numpy": ("numpy", "everything"), "hydra": ("hydra-core", "the command line"),
           "gymnasium": ("gymnasium", "environments"), "mujoco": ("mujoco", "maze and robot physics"),
           "minari": ("minari", "data sets"), "h5py": ("h5py", "data sets"),
           "av": ("av", "video files (pictures and gifs work)"),
           "diffusers": ("diffusers", "pretrained diffusers models")}
EXTRAS = {  # extra of dforce -> modules that it brings
    "planning": ("gymnasium", "mujoco", "minari", "h5py"), "video": ("av", "websockets"), "doom": ("vizdoom",),
    "images": ("sklearn", "skimage"), "align": ("diffusers",), "benchmarks": ("gymnasium_robotics", "ogbench"),
    "offline-rl": ("d3rlpy",), "slurm": ("submitit",)}
NEEDED = ("numpy", "hydra")
DISK_GB = 2.0  # a demo run with its data is far below; an install of a CUDA torch is not counted


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
