"""The run folder: how a run was called, where it ran, what it measured, how it ended.

    runs/<verb>/<time>/  config.yaml env.json metrics.jsonl results.json episodes.jsonl checkpoints/ media/ STATUS

Under torchrun only rank 0 writes.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from dforce.config import to_yaml
from dforce.core.files import replacing
from dforce.report.html import write_index
from dforce.report.rows import append_episodes, write_results
from dforce.runs.environment import environment, peak_memory_mb, results_header
from dforce.runs.lock import LOCK, occupied
from dforce.runs.progress import Ticker, progress
from dforce.runs.trackers import Tracking
from dforce.train.interrupts import is_stop

RECORD = {LOCK, "config.yaml", "env.json", "STATUS", "index.html"}
BEGINNING = {*RECORD, "metrics.jsonl", "media", "checkpoints"}
MADE = {*BEGINNING, "results.json", "episodes.jsonl", "reward", "images"}
TEMPORARY = re.compile(r"\.tmp(-\d+)?$|\.\d+\.partial(\.\w+)?$")  # of writers that were killed

__all__ = ["Invocation", "RunFolder", "Ticker", "environment", "peak_memory_mb", "progress",
           "results_header", "write_atomic"]


class Invocation(NamedTuple):
    """How a command was called: for the record of its run, and for the folder that it writes."""

    verb: str  # as its runs are filed below runs/, "train/image"
    command: str  # the command line, as a person types it
    config: dict[str, Any]  # resolved, plain: written to config.yaml and into checkpoints, and read by nobody
    given: frozenset[str]  # dotted keys that the command line names
    out: str | None = None  # the run folder asked for, in a sweep that of the job; None for runs/<verb>/<time>

    @contextmanager
    def folder(self, *, resume: bool = False, shared: bool = False) -> Iterator[RunFolder]:
        """The run folder, inside `with`, new or (resume) with content; its page is written and named at the end.

        shared: other processes that share it may work in it at the same time.
        """
        folder = RunFolder(self.verb, self.config, out=self.out, resume=resume, command=self.command, shared=shared)
        if shared:
            folder.further = f"the same command with out={folder.path} goes on"
        elif "resume" in self.config:  # true, or the folder
            data = isinstance(self.config["resume"], bool)
            folder.further = f"go on with resume={f'true out={folder.path}' if data else folder.path}"
        try:
            try:
                with folder:
                    yield folder
            finally:
                if folder.writes:  # after STATUS is written; a run that failed has a page too
                    page = write_index(folder.path)
        except (ValueError, OSError, ImportError) as error:
            if isinstance(error, OSError) and error.errno is not None and error.filename is None:
                error.filename = str(folder.path)  # a full disk names no file
            if self.out is None:
                folder.discard_if_bare()
            raise
        if folder.writes:
            print(f"open {page}")


class RunFolder:
    """Folder of one run, used as a context manager: STATUS says `running`, then `done`, `stopped` or `failed: message`.

    verb: first part of the default place, runs/<verb>/<time>; out: another one. config: written to config.yaml,
    resolved. resume: go on in a folder that has content, else FileExistsError, unless it holds nothing but the
    beginning of a run that was killed before it saved anything, or what a run of this configuration made that did not
    come to its end and whose verb cannot resume: that is made anew. command: for the record, sys.argv if None. shared:
    with processes that share it, too. ending: what STATUS says of a run that raised nothing. further: how to go on with
    one that was stopped. ValueError where another process is at work in it, and under torchrun without `out`.
    """

    def __init__(self, verb: str, config: Any = None, *, out: str | Path | None = None, resume: bool = False,
                 command: str | None = None, shared: bool = False) -> None:
        self.writes = int(os.environ.get("RANK", "0")) == 0
        self.ending, self.further = "done", "nothing of it can be gone on with"
        self.tracking = Tracking(None, Path(), {}, 0)
        if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("several processes need one folder: give out=runs/<name>")
        self.path = Path(out) if out is not None else _timed(Path("runs") / verb)
        self.media = self.path / "media"
        self.checkpoints = self.path / "checkpoints"
        self._begin = time.monotonic()
        self._env = environment(command)
        if not self.writes:
            return
        text, self._config = None if config is None else to_yaml(config), config
        if not resume and self.path.exists() and not _free(self.path, text):
            raise FileExistsError(f"{self.path} has content; choose another out=, or resume that run")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        self._lock.enter_context(occupied(self.path, shared=shared))
        if not resume and not _free(self.path, text):  # another process was quicker
            raise FileExistsError(f"{self.path} has content by now; choose another out=")
        if not resume:
            _clear(self.path)
        if text is not None:  # first of all: whoever finds the folder can begin anew
            write_atomic(self.path / "config.yaml", text)
        self.media.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        self.status("running")
        write_atomic(self.path / "env.json", json.dumps({**self._env, "before": self._before()}, indent=2) + "\n")

    def _before(self) -> list[dict[str, Any]]:
        """Command, commit and time of what ran in this folder earlier, oldest first."""
        try:
            old = json.loads((self.path / "env.json").read_text(encoding="utf-8"))
            return [*old.get("before", []), {key: old[key] for key in ("command", "commit", "time")}]
        except (OSError, ValueError, KeyError, RecursionError):
            return []

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        text = self.ending if kind is None else f"failed: {str(error) or kind.__name__}"
        stopped = is_stop(error)
        if stopped:
            said = str(error) if isinstance(error, KeyboardInterrupt) else ""
            text = f"{said if said.startswith('stopped') else 'stopped'}; {self.further}"
        self.status(text)
        self.tracking.close()
        if self.writes:
            self._lock.close()
        if stopped:
            raise KeyboardInterrupt(text) from error

    def track(self, name: str | None, begin: int = 0) -> None:
        """Tells the tracker of this name, as `TRACKERS` has it, what `log` is told. begin: steps done already."""
        if self.writes:
            self.tracking = Tracking(name, self.path, self._config, begin)

    def discard_if_bare(self) -> None:
        """Removes the folder, and those around it that are empty then, where nothing was made but its own record."""
        if self.writes and {file.name for file in self.path.rglob("*") if file.is_file()} <= RECORD:
            shutil.rmtree(self.path)
            with suppress(OSError):
                for parent in self.path.parents:
                    parent.rmdir()

    def log(self, step: int, **scalars: Any) -> None:
        """Appends one line to metrics.jsonl. Numbers that are not finite are written as null."""
        self.tracking.numbers(step, scalars)
        if self.writes:
            row = {"step": step, "seconds": self.seconds(), **scalars}
            with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(_json(row)) + "\n")

    def episodes(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends to episodes.jsonl, one flat object an episode or sample."""
        if self.writes:
            append_episodes(self.path / "episodes.jsonl", rows)

    def results(self, rows: Iterable[Mapping[str, Any]], **more: Any) -> None:
        """Writes results.json, header (with `more` in it) and rows as `dforce.report.rows` has them, anew."""
        if self.writes:
            write_results(self.path / "results.json", {**results_header(self._env, self.seconds()), **more}, rows)

    def captions(self, of_pictures: Mapping[str, str]) -> None:
        """Writes media/captions.json: file name -> what the page says below it."""
        write_atomic(self.media / "captions.json", json.dumps(dict(of_pictures), indent=1) + "\n")

    def seconds(self) -> float:
        """Seconds since the run began."""
        return round(time.monotonic() - self._begin, 3)

    def status(self, text: str) -> None:
        """Replaces STATUS: one line, `running`, `done`, `stopped; how to go on` or `failed: message`."""
        if self.writes:
            write_atomic(self.path / "STATUS", " ".join(text.split()) + "\n")


def nothing_saved(folder: Path) -> bool:
    """Is a folder empty, but for what a run writes before its first result and leaves where it is killed?"""
    if not folder.is_dir():
        return False
    status, names = folder / "STATUS", {file.name for file in folder.iterdir() if not TEMPORARY.search(file.name)}
    within = [file for part in ("media", "checkpoints") for file in (folder / part).glob("*")
              if not TEMPORARY.search(file.name)]
    word = status.read_text(encoding="utf-8", errors="replace") if status.is_file() else "running"
    return names <= BEGINNING and not within and word.startswith(("running", "stopped"))


def _free(folder: Path, config: str | None) -> bool:
    """Is nothing saved in a folder, or nothing that a run of this configuration, a YAML, would not make again?"""
    file, status = folder / "config.yaml", folder / "STATUS"
    if nothing_saved(folder) or config is None or not (file.is_file() and status.is_file()):
        return nothing_saved(folder)
    names = {file.name for file in folder.iterdir() if not TEMPORARY.search(file.name)}
    unfinished = not status.read_text(encoding="utf-8", errors="replace").startswith("done")
    alone = re.search("^resume:", config, re.MULTILINE) is None
    return alone and unfinished and names <= MADE and file.read_text(encoding="utf-8", errors="replace") == config


def _clear(folder: Path) -> None:
    """Removes what a run before made, but for the record of it."""
    for name in MADE - RECORD:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Writes a file so that a reader, or a crash, finds the old text or the new one and nothing between."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _timed(parent: Path) -> Path:
    """parent/<time>; a second run within the second gets `-2`, and so on."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for i in range(1, 1000):
        path = parent / (stamp if i == 1 else f"{stamp}-{i}")
        try:
            path.mkdir(parents=True)  # mkdir, not a look: two runs that start together must not share one
            return path
        except FileExistsError:
            continue
    raise FileExistsError(f"{parent / stamp} and 999 more exist; give out=")


def _json(value: Any) -> Any:
    """Tensors, arrays and numbers that are not finite, as strict JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
