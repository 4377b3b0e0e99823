"""`dforce align`: a trained model towards a reward. What all targets share; each has a module of its own."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from dforce.align import AlignObjective, Sampler, adapter_state, fold, load_adapters, save_adapters
from dforce.align.algorithms import ALGORITHMS
from dforce.align.loop import Aligning, Epoch, tune
from dforce.align.monitor import Watch, has_density
from dforce.align.rewards.protocol import RewardError
from dforce.cli import manual
from dforce.config import nearest
from dforce.report.plots.monitor import watch_curves
from dforce.runs.folder import RunFolder, Ticker
from dforce.runs.training_run import has_checkpoint, rewind
from dforce.train.checkpoint import find, keep_last, load_state, save, step_folder
from dforce.train.fit import TrainingState, stop_requested

FOLDER = False  # only a target that does not exist gets here
FEW = {"epochs": 2, "samples": 32, "updates": 2}  # fast_dev_run
MODEL = ("net", "schedule", "predict", "data_std")  # what a checkpoint's configuration says of the network
ADAPTERS = "adapters_"  # beside step_*: what a low-rank run goes on from


def run(cfg: Any, folder: RunFolder | None) -> None:
    """ValueError: which targets there are. Those that exist run as dforce.verbs.align_<target>."""
    raise ValueError(f"nothing called {cfg.target!r} can be tuned{nearest(cfg.target, manual.kinds('align'))}")


def settings_of(cfg: Any, usual: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What cfg says of its algorithm, for `dforce.align.algorithms.build`; under fast_dev_run little of it.

    usual: of a target, instead of the algorithm's own, for those that cfg leaves open and the algorithm uses.
    """
    every = {key for recipe in ALGORITHMS.values() for key in recipe.uses}
    given = {key: cfg[key] for key in sorted(every) if key in cfg and cfg[key] is not None}
    uses = ALGORITHMS[cfg.algorithm].uses if cfg.algorithm in ALGORITHMS else {}
    own = {key: value for key, value in (usual or {}).items() if key in uses}
    return {**own, **given, **{key: value for key, value in FEW.items() if key in uses and cfg.fast_dev_run}}


def check_kl_max(cfg: Any, sampler: Sampler) -> None:
    """ValueError where a largest KL is asked for, and nothing measures it."""
    if cfg.kl_max is not None and not (cfg.watch and has_density(sampler)):
        raise ValueError("kl_max takes a watch that measures the KL: watch > 0 samples, eta > 0")


@dataclass
class Saver:
    """Checkpoints of a tuning run: those of the model begun with, and a record of what was done to it.

    config, layout, normalizer: of the model begun with, as `dforce.train.checkpoint.save` takes them. about: JSON-able,
    into state.json. Low-rank adapters are in the weights of step_*, which any reader of checkpoints then understands,
    and on their own beside it, to go on from.
    """

    folder: RunFolder
    keep: int
    config: Mapping[str, Any]
    layout: Mapping[str, Any]
    normalizer: nn.Module | None
    about: dict[str, Any]
    newest: Path | None = None
    step: int = field(default=-1)

    def write(self, epoch: Epoch) -> None:
        """The weights of now, unless they are there already."""
        log, place = epoch.log, step_folder(self.folder.checkpoints, epoch.log.step)
        if log.step == self.step or not self.folder.writes:
            return
        state, model = log.training.state(), log.training.objective.denoiser
        if adapter_state(model):
            plain = copy.deepcopy(model)
            fold(plain)
            weights = {f"denoiser.{name}": value.detach() for name, value in plain.state_dict().items()}
            state = state._replace(model=weights)
            save_adapters(self.folder.checkpoints / f"{ADAPTERS}{log.step:08d}", model)
        record = {**self.about, "epochs": epoch.number, "queries": epoch.queries}
        save(place, state, config=self.config, layout=self.layout, normalizer=self.normalizer,
             extra={"aligned": record, "memory": epoch.memory})
        self.newest, self.step = place, log.step
        keep_last(self.folder.checkpoints, self.keep)
        for old in sorted(self.folder.checkpoints.glob(f"{ADAPTERS}*"))[:-self.keep]:
            shutil.rmtree(old)


def state_of(cfg: Any, aligning: Aligning) -> TrainingState | None:
    """Where cfg.resume stopped, the memory of `aligning` taken up; None for a new run.

    ValueError where the run was stopped in the middle of an epoch as it is cut now.
    """
    if not cfg.resume or not has_checkpoint(Path(cfg.resume)):
        return None
    place = find(cfg.resume)
    state = load_state(place)
    if state.step % aligning.per_epoch:
        raise ValueError(f"{place} has {state.step} steps, which are no whole epochs of {aligning.per_epoch} updates: "
                         "resume with the updates and passes of that run")
    extra = json.loads((place / "state.json").read_text(encoding="utf-8"))["extra"]
    aligning.remember(extra.get("memory") or {})
    model = aligning.objective.denoiser
    if adapter_state(model):
        load_adapters(place.parent / f"{ADAPTERS}{state.step:08d}", model)
        state = state._replace(model={name: value.detach().clone()
                                      for name, value in aligning.objective.state_dict().items()})
    return state


def carry_out(aligning: Aligning, cfg: Any, folder: RunFolder, saver: Saver, watch: Watch | None, *,
              state: TrainingState | None = None) -> Path:
    """Tunes to the end, until the watch sees cfg.kl_max, or Ctrl-C; the newest checkpoint.

    Writes metrics.jsonl and media/watch.png. Of cfg: seed, save_every, watch_every, kl_max, device. A reward that fails
    ends the run in ValueError, after the weights that were good have been saved.
    """
    begin = (state.step if state else 0) // aligning.per_epoch
    rewind(folder, state.step if state else -1)
    last: Epoch | None = None
    try:
        if watch is not None and begin == 0:
            _look(folder, watch, 0, 0, 0)
        with stop_requested() as stop, Ticker(aligning.settings["epochs"] - begin, "align") as ticker:
            for last in tune(aligning, seed=cfg.seed, resume=state, device=cfg.device):
                kl = _one(last, aligning, cfg, folder, saver, watch).get("kl", 0.0)
                ticker.advance(note=f"reward {last.metrics['reward']:.4g}" if "reward" in last.metrics else "")
                if cfg.kl_max is not None and kl > cfg.kl_max:
                    print(f"stopped after epoch {last.number}: KL {kl:.3g} nats > kl_max={cfg.kl_max:g}")
                    break
                if stop():
                    raise KeyboardInterrupt(f"stopped after epoch {last.number}; go on with resume={folder.path}")
    except RewardError as error:
        if last is None:
            raise ValueError(str(error)) from error
        saver.write(last)
        raise ValueError(f"{error}; {saver.newest} has those of epoch {last.number}") from error
    finally:
        if last is not None:
            saver.write(last)
        _curves(folder, aligning.name)
    return saver.newest or find(cfg.resume)


def _one(epoch: Epoch, aligning: Aligning, cfg: Any, folder: RunFolder, saver: Saver,
         watch: Watch | None) -> dict[str, float]:
    """What follows an epoch: numbers, a checkpoint, and what the watch saw, if it looked."""
    final = epoch.number == aligning.settings["epochs"]
    folder.log(epoch.log.step, epoch=epoch.number, queries=epoch.queries, **epoch.metrics)
    if final or epoch.number % cfg.save_every == 0:
        saver.write(epoch)
    if watch is not None and (final or epoch.number % cfg.watch_every == 0):
        return _look(folder, watch, epoch.log.step, epoch.number, epoch.queries)
    return {}


def _look(folder: RunFolder, watch: Watch, step: int, epoch: int, queries: int) -> dict[str, float]:
    looked = watch.look()
    folder.log(step, epoch=epoch, queries=queries, **{f"watch_{name}": value for name, value in looked.items()})
    return looked


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


def begun_with(config: Mapping[str, Any], cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a tuned checkpoint: the network's own, and what was asked of the run."""
    return {**{key: config[key] for key in MODEL if key in config}, **cfg}


def trainable(objective: AlignObjective) -> int:
    """How many numbers learn."""
    return sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)
