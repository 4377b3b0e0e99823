"""A tuning as a run: its settings, its log, its checkpoints and curves, going on where it stopped."""

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from dforce.align.algorithms.common import Algorithm
from dforce.align.loop import Aligning, Epoch, tuning_epochs
from dforce.align.lora import adapter_state, add_lowrank, fold, load_adapters, save_adapters
from dforce.align.monitor import has_density
from dforce.align.on_policy import Sampler
from dforce.align.rewards.protocol import RewardError
from dforce.report.plots.monitor import watch_curves
from dforce.runs.folder import Invocation, RunFolder
from dforce.runs.progress import Advance, Ticker, bar, no_advance
from dforce.runs.trackers import Shown, need_tracker
from dforce.runs.training_run import finished, has_checkpoint, resuming, rewind
from dforce.train.checkpoint import Bundle, find, keep_last, load_state, save, step_folder
from dforce.train.fit import Training, TrainingState, stop_requested

ADAPTERS = "adapters_"  # beside step_*: what a low-rank run goes on from


# (checkpoint to write, the weights of now, configuration of the run, what else state.json says)
Store = Callable[[Path, Training, dict[str, Any], dict[str, Any]], None]


class Look(Protocol):
    """Measures a policy on the way, such as `Monitor`."""

    @property
    def sampler(self) -> Sampler: ...

    @property
    def shown(self) -> Shown | None:
        """Some of the images of the last look."""

    def look(self, advance: Advance = no_advance) -> dict[str, float]: ...


class PreparedTuning(NamedTuple):
    """All that can be refused before a run begins."""

    aligning: Aligning
    monitor: Look | None     # looks at the policy on the way
    store: Store             # writes its checkpoints
    about: dict[str, Any]    # JSON-able, what is tuned towards what, into state.json
    state: TrainingState | None  # of the resumed run
    data: Any = None         # whatever `finish` wants of what was prepared


@dataclass(frozen=True, kw_only=True)
class TuningRun:
    """What runs of every kind of model share: see configs/verbs/align/image.yaml. A kind adds its own settings."""

    algorithm: Algorithm
    lowrank: int | None
    eta: float
    min_std: float
    rows: int | None
    kl_max: float | None
    watch: int
    watch_every: int
    evaluate: int
    seed: int
    eval_seed: int
    save_every: int
    keep_last: int
    device: str | None = None
    trust: Any = None
    resume: str | None = None
    tracker: str | None = None

    def prepare(self) -> PreparedTuning:
        """Model, reward and algorithm, or ValueError."""
        raise NotImplementedError

    def finish(self, prepared: PreparedTuning, folder: RunFolder) -> None:
        """What the folder says of the tuned model beside the one begun with."""
        raise NotImplementedError

    def adapted(self, module: nn.Module) -> nn.Module:
        """The module, with low-rank adapters where they are asked for."""
        if self.lowrank is not None:
            add_lowrank(module, rank=self.lowrank, generator=torch.Generator().manual_seed(self.seed))
        return module

    def record(self, base: str | None, aligning: Aligning, **more: Any) -> dict[str, Any]:
        """What state.json says of the tuning. base: name or folder of the model begun with."""
        learning = sum(each.numel() for each in aligning.objective.parameters() if each.requires_grad)
        return {"base": str(base), "algorithm": aligning.name, "settings": aligning.settings,
                "lowrank": self.lowrank, "learning": learning, **more}


def run_tuning(run: TuningRun, call: Invocation) -> Path | None:
    """Tunes into the run folder, the old one of a resumed run; None where nothing is left, and without writing."""
    need_tracker(run.tracker)
    with resuming(call, run.resume):
        prepared = run.prepare()
        if run.kl_max is not None and not (prepared.monitor and has_density(prepared.monitor.sampler)):
            raise ValueError("kl_max takes a watch that measures the KL: watch > 0 samples, eta > 0")
        steps = prepared.aligning.steps
        if prepared.state is not None and prepared.state.step >= steps and finished(call):
            print(f"the run in {run.resume} has all its {steps} steps; raise algorithm.epochs to go on")
            return None
        with call.folder(resume=bool(run.resume)) as folder:
            folder.track(run.tracker, prepared.state.step if prepared.state else 0)
            saver = Saver(folder, run.keep_last, prepared, call.config)
            follow_epochs(run, prepared, folder, saver)
            if folder.writes and run.evaluate:
                run.finish(prepared, folder)
    return folder.path if folder.writes else None


def resumed_state(aligning: Aligning, resume: str | None) -> TrainingState | None:
    """Where the run `resume` stopped, the memory of `aligning` taken up; None for a new run."""
    if not resume or not has_checkpoint(Path(resume)):
        return None
    place = find(resume)
    state = load_state(place)
    if state.step % aligning.per_epoch:
        raise ValueError(f"{place} has {state.step} steps, which are no whole epochs of {aligning.per_epoch} updates: "
                         "resume with the updates and passes of that run")
    extra = json.loads((place / "state.json").read_text(encoding="utf-8"))["extra"]
    aligning.remember(extra.get("memory") or {})
    model = aligning.objective.denoiser
    beside = place.parent / f"{ADAPTERS}{state.step:08d}"
    if adapter_state(model):
        if beside.is_dir():
            load_adapters(beside, model)
            state = state._replace(model={})
        state = state._replace(model={**aligning.objective.state_dict(), **state.model})  # the base is as it was
    return state


def checkpoint_store(base: Bundle, describe: Callable[[dict[str, Any]], dict[str, Any]]) -> Store:
    """Checkpoints like that of `base`, with its layout and normaliser. describe: configuration -> what they say of it.

    Low-rank adapters are in the weights of step_*, which any reader of checkpoints then understands, and on their own
    beside it, to go on from.
    """
    def write(place: Path, training: Training, config: dict[str, Any], extra: dict[str, Any]) -> None:
        state, model = training.state(), training.objective.get_submodule("denoiser")
        if adapter_state(model):
            plain = copy.deepcopy(model)
            fold(plain)
            state = state._replace(model={f"denoiser.{name}": value.detach()
                                          for name, value in plain.state_dict().items()})
            save_adapters(place.parent / f"{ADAPTERS}{state.step:08d}", model)
        save(place, state, config=describe(config), layout=base.layout, normalizer=base.normalizer, coders=base.coders,
             extra=extra)
    return write


@dataclass
class Saver:
    """The checkpoints of a tuning run."""

    folder: RunFolder
    keep: int
    prepared: PreparedTuning
    config: dict[str, Any]  # of the run
    newest: Path | None = None
    step: int = -1

    def write(self, epoch: Epoch) -> None:
        """The weights of now, unless they are there already."""
        log, place = epoch.log, step_folder(self.folder.checkpoints, epoch.log.step)
        if log.step == self.step or not self.folder.writes:
            return
        about = {**self.prepared.about, "epochs": epoch.number, "queries": epoch.queries}
        self.prepared.store(place, log.training, self.config, {"aligned": about, "memory": epoch.memory})
        self.newest, self.step = place, log.step
        keep_last(self.folder.checkpoints, self.keep)
        for old in sorted(self.folder.checkpoints.glob(f"{ADAPTERS}*"))[:-self.keep]:
            shutil.rmtree(old)


def follow_epochs(run: TuningRun, prepared: PreparedTuning, folder: RunFolder, saver: Saver) -> None:
    """Tunes to the end, kl_max, or Ctrl-C; a reward that fails ends it after the weights before it are saved."""
    aligning, state = prepared.aligning, prepared.state
    begin = (state.step if state else 0) // aligning.per_epoch
    rewind(folder, state.step if state else -1)
    last: Epoch | None = None
    try:
        if prepared.monitor is not None and begin == 0:
            with bar("look") as advance:
                _look(folder, prepared.monitor, 0, 0, 0, advance)
        with stop_requested() as stop, Ticker(aligning.epochs - begin, "align") as ticker:
            for last in tuning_epochs(aligning, seed=run.seed, resume=state, device=run.device, advance=ticker.part()):
                ticker.advance(0, note=f"reward {last.metrics['reward']:.4g}" if "reward" in last.metrics else "")
                kl = _after_epoch(run, prepared, last, folder, saver).get("kl", 0.0)
                if run.kl_max is not None and kl > run.kl_max:
                    print(f"stopped after epoch {last.number}: KL {kl:.3g} nats > kl_max={run.kl_max:g}")
                    break
                if stop():
                    raise KeyboardInterrupt(f"stopped after epoch {last.number}")
    except RewardError as error:
        if last is None:
            raise ValueError(str(error)) from error
        saver.write(last)
        raise ValueError(f"{error}; {saver.newest} has those of epoch {last.number}") from error
    finally:
        if last is not None:
            saver.write(last)
        _curves(folder, aligning.name)


def _after_epoch(run: TuningRun, prepared: PreparedTuning, epoch: Epoch, folder: RunFolder,
                 saver: Saver) -> dict[str, float]:
    """Logs the epoch, saves where that is due. Returns what the monitor saw, {} where it did not look."""
    final = epoch.number == prepared.aligning.epochs
    folder.log(epoch.log.step, epoch=epoch.number, queries=epoch.queries, **epoch.metrics)
    if final or epoch.number % run.save_every == 0:
        saver.write(epoch)
    if prepared.monitor is not None and (final or epoch.number % run.watch_every == 0):
        return _look(folder, prepared.monitor, epoch.log.step, epoch.number, epoch.queries)
    return {}


def _look(folder: RunFolder, monitor: Look, step: int, epoch: int, queries: int,
          advance: Advance = no_advance) -> dict[str, float]:
    measured = monitor.look(advance)
    if monitor.shown is not None:
        folder.tracking.pictures(step, monitor.shown)
    folder.log(step, epoch=epoch, queries=queries, **{f"watch_{name}": value for name, value in measured.items()})
    return measured


def _curves(folder: RunFolder, title: str) -> None:
    """media/watch.png of the looks in metrics.jsonl."""
    file = folder.path / "metrics.jsonl"
    if not folder.writes or not file.is_file():
        return
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    looks = [{"queries": line["queries"], **{name.removeprefix("watch_"): math.nan if value is None else value
                                             for name, value in line.items() if name.startswith("watch_")}}
             for line in lines if any(name.startswith("watch_") for name in line)]
    if looks:
        watch_curves(looks, title=title).savefig(folder.media / "watch.png")
