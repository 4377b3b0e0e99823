"""A training as a run: going on where it stopped, its log, its checkpoints, its loss curve, its page."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from dforce.config import Node
from dforce.data.normalize import Affine
from dforce.report.plots.curves import denoising_curves, loss_curve
from dforce.runs.folder import Invocation, RunFolder, Ticker, write_atomic
from dforce.runs.jobs import run_is_done
from dforce.runs.lock import occupied
from dforce.runs.trackers import need_tracker
from dforce.train import checkpoint
from dforce.train.checkpoint import Bundle, find, load, load_state, save
from dforce.train.fit import Log, stop_requested
from dforce.train.validation import ERROR, noted

LINE = 25  # steps a line of metrics.jsonl


class Prepared(NamedTuple):
    """All that can be refused before a run begins."""

    logs: Iterator[Log]  # what `fit` yields, step by step
    about: dict[str, Any]  # layout, normalizer and coders of cameras, for the checkpoints
    begin: int  # steps done already, of `steps`; a run that was killed after its last step has all of them
    steps: int
    data: Any = None  # whatever `finish` wants of what was prepared


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """What trainings of a denoiser have in common. The keys are explained in configs/verbs/train."""

    model: Node  # nodes `net` and `schedule`, and `predict`
    data: Any
    batch: int
    objective: Callable[..., Any]  # (denoiser, schedule) -> objective
    fit: partial[Any]  # `dforce.fit`, waiting for objective and data
    seed: int
    save_every: int
    keep: int
    carry: bool = False
    tracker: str | None = None
    resume: str | None = None
    trust: Any = None

    def begin(self, layout: dict[str, Any], batch_at: Callable[..., Any], *, what: str,
              differing: Callable[[Bundle], str | None], data: Any = None, normalizer: Affine | None = None,
              coders: Any = None, **options: Any) -> Prepared:
        """Model and training loop for data of this layout, from the beginning or from where the run stopped.

        batch_at, options: as `fit` takes them. data: for `finish`. differing: says how the data, called `what`, differ
        from those of a checkpoint (a ValueError); None where they do not.
        """
        torch.manual_seed(self.seed)
        denoiser = checkpoint.build_denoiser(self.model, layout, trust=self.trust)
        objective = self.objective(denoiser, denoiser.schedule, **({"carry": True} if self.carry else {}))
        state = None  # also where the run was stopped before its first checkpoint
        if self.resume and has_checkpoint(Path(self.resume)):
            difference = differing(load(self.resume, trust=self.trust))
            if difference is not None:
                raise ValueError(f"{what} {self.data} are not those that {self.resume} was trained on{difference}: "
                                 "bring the old ones back, or start a new run")
            state = load_state(self.resume)
        logs = self.fit(objective, batch_at, seed=self.seed, resume=state, **options)
        beside = {"normalizer": normalizer, "coders": coders}
        return Prepared(logs, {"layout": layout, **{key: each for key, each in beside.items() if each is not None}},
                        state.step if state else 0, self.fit.keywords["steps"], data)


class TrainingRun(Protocol):
    """One kind of training, with all its settings, such as `DenoiserTraining`."""

    @property
    def resume(self) -> str | None: ...

    @property
    def tracker(self) -> str | None: ...

    @property
    def save_every(self) -> int: ...

    @property
    def keep(self) -> int: ...

    def prepare(self) -> Prepared:
        """Builds data, model and training loop; ValueError where they do not fit one another."""

    def finish(self, prepared: Prepared, folder: RunFolder, newest: Path) -> None:
        """Writes what belongs in the folder beside the checkpoints. newest: the last of them."""


def run_training(training: TrainingRun, call: Invocation, *, longer: str = "fit.steps",
                 begin: Callable[[Prepared, RunFolder], None] = lambda prepared, folder: None) -> Path | None:
    """Trains into the run folder, a resumed run's old one, which it returns; None where nothing was left or is written.

    longer: the key to raise for a longer run. begin: on every process, before the first step, once there is a folder.
    """
    need_tracker(training.tracker)
    with resuming(call, training.resume):
        prepared = training.prepare()
        if prepared.begin >= prepared.steps and finished(call):
            print(f"the run in {training.resume} has all its {prepared.steps} steps; raise {longer} to go on")
            return None
        # Only now is the folder touched: what is refused, or has nothing to do, leaves a finished run as it was.
        with call.folder(resume=bool(training.resume)) as folder:
            folder.track(training.tracker, prepared.begin)
            begin(prepared, folder)
            newest = follow(training, prepared, folder, call.config)
            if folder.writes:
                training.finish(prepared, folder, newest)
    return folder.path if folder.writes else None


def resuming(call: Invocation, resume: str | None) -> AbstractContextManager[None]:
    """Holds the folder of a run to go on with from before its checkpoint is read, so that no other process goes on."""
    return occupied(Path(call.out)) if resume and call.out and Path(call.out).is_dir() else nullcontext()


def finished(call: Invocation) -> bool:
    """Has the run in the folder of `call` come to its end?"""
    return run_is_done(Path(call.out or ""))


def follow(training: TrainingRun, prepared: Prepared, folder: RunFolder, config: dict[str, Any],
           late: Callable[[], bool] = lambda: False) -> Path:
    """Trains until the end or KeyboardInterrupt (Ctrl-C, SIGTERM, late()); returns the newest checkpoint."""
    keeper = Keeper(folder, training.keep, {"config": config, **prepared.about})
    with stop_requested() as stop:
        _follow(prepared, training.save_every, folder, keeper.write, lambda: stop() or late())
    if folder.writes:
        _curve(folder)
    return keeper.newest or find(training.resume or folder.path)


def other_statistics(now: Affine) -> Callable[[Bundle], str | None]:
    """`differing` of `DenoiserTraining.begin` for data that are known by their normaliser."""
    def differing(bundle: Bundle) -> str | None:
        before = bundle.normalizer
        same = before is not None and torch.equal(before.mean, now.mean) and torch.equal(before.std, now.std)
        return None if same else " (their means or deviations differ)"
    return differing


def has_checkpoint(where: Path) -> bool:
    """Is `where` a checkpoint, or a run folder that holds one to go on from?"""
    return (where / "MANIFEST.json").is_file() or bool(checkpoint.step_folders(where / "checkpoints"))


@dataclass
class Keeper:
    """Writes the checkpoints of a run: step_*, of which the newest `keep` stay, and best, of the lowest val_loss."""

    folder: RunFolder
    keep: int
    about: dict[str, Any]  # config, layout, normalizer and coders, as `dforce.train.checkpoint.save` takes them
    newest: Path | None = None  # the last one written

    def __post_init__(self) -> None:
        self.lowest = _lowest(self.folder.checkpoints / "best")

    def write(self, log: Log, *, due: bool) -> None:
        """Writes `best` where the validation loss is the lowest so far, and `step_*` where one is due."""
        held_out = log.validation.get("val_loss", float("inf"))
        places = [self.folder.checkpoints / "best"] if held_out < self.lowest else []
        places += [checkpoint.step_folder(self.folder.checkpoints, log.step)] if due else []
        if not places:
            return
        self.lowest = min(self.lowest, held_out)
        state = log.training.state()  # on every process: carried states are gathered from all
        for place in places if self.folder.writes else []:
            save(place, state, extra=log.validation, **self.about)
        if due:
            self.newest = places[-1]
            if self.folder.writes:
                checkpoint.keep_last(self.folder.checkpoints, self.keep)


def _lowest(best: Path) -> float:
    """The validation loss of the best checkpoint of this folder so far."""
    try:
        checkpoint.verify(find(best))
        return float(json.loads((best / "state.json").read_text("utf-8"))["extra"]["val_loss"])
    except (ValueError, KeyError, TypeError):  # there is none, or it is damaged: the next one takes its place
        return float("inf")


def _follow(prepared: Prepared, save_every: int, folder: RunFolder, write: Callable[..., None],
            stop: Callable[[], bool]) -> None:
    """Log, show and save what training yields, until it ends or is asked to stop."""
    log, note, begin = None, "", prepared.begin
    with Ticker(None, "train") as ticker:
        for log in prepared.logs:
            if log.step == begin + 1 and folder.writes:  # by now every process has read what it goes on from
                rewind(folder, begin)
            ticker.total = log.steps - begin
            last, requested = log.step == log.steps, stop()
            if log.step % LINE == 0 or last or log.validation:  # to read the numbers of a step is to wait for it
                folder.log(log.step, **log.metrics)
                note = noted(log.metrics, note)
            ticker.advance(note=note)
            write(log, due=log.step % save_every == 0 or last or requested)
            if requested and not last:
                raise KeyboardInterrupt(f"stopped at step {log.step}")


def rewind(folder: RunFolder, step: int) -> None:
    """Drops what a killed run half wrote, and its lines and checkpoints after the `step` that training goes on from."""
    file = folder.path / "metrics.jsonl"
    lines = file.read_text("utf-8", errors="replace").splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if _step_of(line) <= step]
    if lines != whole:
        write_atomic(file, "".join(whole))
    for later in [*folder.checkpoints.glob("*.tmp-*"), *checkpoint.step_folders(folder.checkpoints)]:
        if ".tmp-" in later.name or int(later.name.removeprefix("step_")) > step:
            shutil.rmtree(later)
    for left in folder.path.glob(".*.tmp"):
        left.unlink()


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl, infinite for one that was not written to its end."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("}\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf


def _curve(folder: RunFolder) -> None:
    """Draws media/loss.png, and errors.png where validations measured errors, from metrics.jsonl."""
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]
    held_out = [line for line in lines if line.get("val_loss") is not None]
    loss_curve([line["step"] for line in lines], [line["loss"] for line in lines],
               [line["step"] for line in held_out], [line["val_loss"] for line in held_out],
               [line.get("val_bound") for line in held_out] if any("val_bound" in line for line in held_out) else (),
               ylabel="weighted x0 error").savefig(folder.media / "loss.png")
    errors = {line["step"]: {key.removeprefix(ERROR): value for key, value in line.items() if key.startswith(ERROR)}
              for line in held_out}
    if any(errors.values()):
        denoising_curves({step: each for step, each in errors.items() if each}).savefig(folder.media / "errors.png")
