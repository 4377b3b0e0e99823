"""Shared test set-up: a bare checkout, not installed, still finds `dforce.envs` and `dforce.configs`."""

from __future__ import annotations

import gc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

import pytest
from matplotlib import rcParams
from matplotlib.figure import Figure

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # nets here are tiny, and threads that wait spin: two runs would crawl
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Minari otherwise spends 23 s retrying where there is no network

FILE: Path | None = None
LAYOUT = Figure.get_layout_engine
ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"dforce": ROOT / "dforce", "dforce.envs": ROOT / "envs", "dforce.configs": ROOT / "configs"}


class CheckoutFinder:
    """Asked last, so an installed dforce always wins. The same mapping as `package-dir` in pyproject.toml."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        folder = FOLDERS.get(name)
        if folder is None or not (folder / "__init__.py").exists():
            return None
        return importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


sys.meta_path.append(CheckoutFinder)  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="session")
def every_page_keeps_the_rules():
    """Every page that a command writes in a test is read as a browser would read it: see `tests.page_rules`."""
    from dforce.runs import folder
    from tests.page_rules import check_page

    write_index = folder.write_index

    def checked(path):
        page = write_index(path)
        check_page(page)
        return page

    folder.write_index = checked
    yield
    folder.write_index = write_index


@pytest.fixture(scope="session", autouse=True)
def _commands_compose_once():
    """Hydra composes every configuration twice, the first time to read hydra.mode, which only a command line could set:
    where it does not, that is left out. Half a command's start."""
    hydra = pytest.importorskip("hydra._internal.hydra").Hydra
    slow = hydra.get_mode

    def get_mode(self, config_name, overrides):
        return slow(self, config_name, overrides) if any("hydra.mode" in word for word in overrides) else None

    hydra.get_mode = get_mode
    yield
    hydra.get_mode = slow


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Pictures are drawn small and without a layout, but where they are what is tested."""
    pictures = "report" in item.path.parts
    Figure.get_layout_engine = LAYOUT if pictures else lambda _: None
    rcParams["savefig.dpi"] = "figure" if pictures else 20
    rcParams["axes.titley"] = None if pictures else 1.0  # a title's place is not searched for among the ticks
    global FILE
    if item.path != FILE:  # what the imports left is not looked through again by every collection (imageio's, a film)
        FILE = item.path
        gc.collect()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before the slow ones are deselected
def pytest_collection_modifyitems(items):
    """Of a test with `quick(n)`, n cases, evenly spread over all, stay quick; the others are slow.

    The slow tests may take as long as CI gives them all: how fast a machine is is not what they test.
    """
    cases = {}
    for item in items:
        if item.get_closest_marker("quick"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for each in cases.values():
        count, = each[0].get_closest_marker("quick").args
        stay = {round(number * (len(each) - 1) / max(count - 1, 1)) for number in range(count)}
        for number, item in enumerate(each):
            if number not in stay:
                item.add_marker(pytest.mark.slow)
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1500))
