"""What all kinds of `dforce train` share: resuming, following a training loop, its checkpoints, its loss curve."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dforce.train.checkpoint import CheckpointError, find, keep_last, save, step_folder, verify
from dforce.train.fit import Log, stop_requested
from dforce.report.plots.curves import loss_curve
from dforce.report.plots.denoising import denoising_curves
from dforce.report.html import write_index
from dforce.runs.folder import RunFolder, Ticker, write_atomic

FEW = {"steps": 20, "warmup": 5, "validate_every": 10, "validate_batches": 1}  # fast_dev_run
LINE = 25  # steps a line of metrics.jsonl
ERROR = "val_error_"


class Prepared(NamedTuple):
    """All that can be refused before a run begins. about: config, layout and normalizer, for its checkpoints.

    begin: steps done already, of `steps`; a run that was killed after its last step has all, and only ends well now.
    data: whatever a kind's `work` wants of what was prepared.
    """

    logs: Iterator[Log]
    about: dict[str, Any]
    begin: int
    steps: int
    data: Any = None


class Kind(NamedTuple):
    """One kind of training, as the command line has it.

    verb: "train", or "train/image" for a kind. keys: what the configuration of its runs has, and others' have not.
    prepare: cfg -> what is trained, or ValueError. work: (prepared, cfg, folder) -> None trains it, and makes what
    belongs in the folder beside the checkpoints. ending: folder -> the last line printed. longer: the key to raise for
    a longer run. within: the key that holds the run's own configuration in that of its checkpoints, "" for none.
    """

    verb: str
    keys: frozenset[str]
    prepare: Callable[[Any], Prepared]
    work: Callable[[Prepared, Any, RunFolder], Any]
    ending: Callable[[Path], str]
    longer: str = "fit.steps"
    within: str = ""


def run_kind(kind: Kind, cfg: Any) -> None:
    """Trains as cfg says; checkpoints, metrics and the page go into the run folder, the old one of a resumed run."""
    job = HydraConfig.get()
    out = cfg.out
    if cfg.resume:
        cfg = _as_before(kind, cfg, job.overrides.task)
        out = cfg.out
    elif job.mode == RunMode.MULTIRUN:
        out = job.runtime.output_dir
    command = shlex.join(["dforce", *kind.verb.split("/"), *job.overrides.task])
    prepared = kind.prepare(cfg)
    status = Path(out or "") / "STATUS"
    if prepared.begin >= prepared.steps and status.is_file() and status.read_text(encoding="utf-8").strip() == "done":
        print(f"the run in {cfg.resume} has all its {prepared.steps} steps; raise {kind.longer} to go on")
        return
    # Only now is the folder touched: what is refused, or has nothing to do, leaves a finished run as it was.
    folder = RunFolder(kind.verb, cfg, out=out, resume=bool(cfg.resume), command=command)
    try:
        with folder:
            kind.work(prepared, cfg, folder)
    finally:
        if folder.writes:  # after STATUS is written; a run that failed has a page too
            write_index(folder.path)
    if folder.writes:
        print(kind.ending(folder.path))


def _as_before(kind: Kind, cfg: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration of the run or checkpoint cfg.resume, but for what was given on the command line now.

    ValueError where there is none.
    """
    where = Path(cfg.resume)
    file = (find(where) if has_checkpoint(where) else where) / "config.yaml"  # what trained, not what was tried since
    before = OmegaConf.load(file) if file.is_file() else {}
    before = before.get(kind.within, before) if kind.within else before
    if not kind.keys <= set(before):
        raise ValueError(f"resume={cfg.resume} is no run folder (nor a checkpoint) of dforce "
                         f"{kind.verb.replace('/', ' ')}: "
                         f"{file} {'describes something else' if before else 'does not exist'}")
    merged = OmegaConf.create({**cfg, **before})  # keys that are newer than the run have their defaults
    for key in (override.partition("=")[0].lstrip("+~").partition("@")[0] for override in overrides):
        OmegaConf.update(merged, key, OmegaConf.select(cfg, key), merge=False, force_add=True)
    checkpoint = (where / "MANIFEST.json").is_file()
    merged.resume, merged.out = cfg.resume, cfg.out or (None if checkpoint else cfg.resume)
    return merged


def has_checkpoint(where: Path) -> bool:
    """Is `where` a checkpoint, or a run folder that holds one to go on from?"""
    return (where / "MANIFEST.json").is_file() or any((where / "checkpoints").glob("step_*"))


def carry_out(prepared: Prepared, cfg: Any, folder: RunFolder, late: Callable[[], bool] = lambda: False) -> Path:
    """Trains to the end, or until Ctrl-C, SIGTERM or late(); the newest checkpoint."""
    keeper = Keeper(folder, cfg.keep, prepared.about)
    with stop_requested() as stop:
        _follow(prepared.logs, cfg, folder, keeper.write, lambda: stop() or late(), begin=prepared.begin)
    if folder.writes:
        _curve(folder)
    return keeper.newest or find(cfg.resume)


@dataclass
class Keeper:
    """Writes the checkpoints of a run: step_*, of which the newest `keep` stay, and best, of the lowest val_loss.

    about: config, layout and normalizer, as `dforce.train.checkpoint.save` takes them. newest: the last one written.
    """

    folder: RunFolder
    keep: int
    about: dict[str, Any]
    newest: Path | None = None

    def __post_init__(self) -> None:
        self.lowest = _lowest(self.folder.checkpoints / "best")

    def write(self, log: Log, *, due: bool) -> None:
        """best where there was a validation, and better than any before; step_* where one is due."""
        held_out = log.validation.get("val_loss", float("inf"))
        places = [self.folder.checkpoints / "best"] if held_out < self.lowest else []
        places += [step_folder(self.folder.checkpoints, log.step)] if due else []
        if not places:
            return
        self.lowest = min(self.lowest, held_out)
        state = log.training.state()  # on every process: carried states are gathered from all
        for place in places if self.folder.writes else []:
            save(place, state, extra=log.validation, **self.about)
        if due:
            self.newest = places[-1]
            if self.folder.writes:
                keep_last(self.folder.checkpoints, self.keep)


def _lowest(best: Path) -> float:
    """The validation loss of the best checkpoint of this folder so far."""
    try:
        verify(find(best))
        return float(json.loads((best / "state.json").read_text("utf-8"))["extra"]["val_loss"])
    except CheckpointError:  # there is none, or it is damaged: the next one takes its place
        return float("inf")


def _follow(logs: Any, cfg: Any, folder: RunFolder, write: Callable[..., None], stop: Callable[[], bool], *,
            begin: int) -> None:
    """Log, show and save what training yields after step `begin`, until it ends or is asked to stop."""
    log, note = None, ""
    with Ticker(None, "train") as ticker:
        for log in logs:
            if log.step == begin + 1 and folder.writes:  # by now every process has read what it goes on from
                rewind(folder, begin)
            ticker.total = log.steps - begin
            last, asked = log.step == log.steps, stop()
            if log.step % LINE == 0 or last or log.validation:  # to read the numbers of a step is to wait for it
                folder.log(log.step, **log.metrics)
                note = f"loss {log.metrics['loss']:.4f}"
            ticker.advance(note=note)
            write(log, due=log.step % cfg.save_every == 0 or last or asked)
            if asked and not last:
                raise KeyboardInterrupt(f"stopped at step {log.step}; go on with resume={folder.path}")


def rewind(folder: RunFolder, step: int) -> None:
    """Drops what a killed run logged, and damaged checkpoints it left, after the `step` that training goes on from."""
    file = folder.path / "metrics.jsonl"
    lines = file.read_text("utf-8").splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
    if lines != whole:
        write_atomic(file, "".join(whole))
    for later in folder.checkpoints.glob("step_*"):
        number = later.name.removeprefix("step_").partition(".")[0]  # also of one half written: step_00000100.tmp-4711
        if number.isdigit() and int(number) > step:
            shutil.rmtree(later)


def _curve(folder: RunFolder) -> None:
    """media/loss.png, and errors.png where a validation looked at them, from metrics.jsonl."""
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
