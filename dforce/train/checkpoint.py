"""Checkpoints are folders, sealed against damage, and loading one runs no code from it.

    model.safetensors   weights of the objective by its own names, their average under "ema.", "normalizer." statistics,
                        "coders." of a policy's cameras
    optim.safetensors   the optimiser's moments (not in a checkpoint made for others to use)
    carried.safetensors the states that the next windows begin in, where training carries them from window to window
    state.json          step, what going on exactly takes, what the caller added
    config.yaml         the resolved configuration: `net`, `schedule`, `predict` are what the model is built from
    layout.json         what the numbers of a token mean: event shape, slices, frame stack, time step, environment
    README.md           a model card
    MANIFEST.json       format version, sizes, sha256, versions of the libraries
"""

import inspect
import json
import platform
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

import dforce
from dforce.config import CHECKPOINT_ROOMS, bounded_yaml, build, nearest, present, resolve
from dforce.core.denoiser import Precond
from dforce.core.schedule import Schedule
from dforce.data.normalize import Affine
from dforce.nets.pictures import CameraCoders
from dforce.train.atomic_folder import CheckpointError, recover, sealed, verified, write_tensors
from dforce.train.contents import NEEDED, Contents, check_contents, check_whole, used
from dforce.train.model_card import model_card
from dforce.train.state import TrainingState, built_for, check_weights, load_weights

__all__ = ["Bundle", "CheckpointError", "build_denoiser", "find", "keep_last", "latest", "load", "load_state",
           "model_of", "save", "step_folder", "step_folders", "verify"]

FORMAT = 1
MODEL = ("net", "schedule", "predict", "data_std")  # what a configuration says of the denoiser
BESIDE = ("ema.", "normalizer.", "coders.")  # what names begin with that are no weights of the objective
PRETRAINED = Path(__file__).parents[1] / "pretrained"

# format n -> what turns the parts of format n into those of n + 1. Every format ever released has to stay here.
MIGRATIONS: dict[int, Callable[[Contents], Contents]] = {}


class Bundle(NamedTuple):
    """A checkpoint ready to use."""

    denoiser: Precond
    schedule: Schedule
    normalizer: Affine | None  # of the last dimension of an unstacked token; None if none was saved
    layout: dict[str, Any]  # what the numbers of a token mean
    config: dict[str, Any]  # the configuration of the run
    step: int  # training steps done
    coders: CameraCoders | None = None  # of a policy's cameras


def model_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the denoiser, as `build_denoiser` takes it."""
    return {key: config[key] for key in MODEL if key in config}


def build_denoiser(config: Mapping[str, Any], layout: Mapping[str, Any], *,
                   trust: Iterable[str] | str | None = None) -> Precond:
    """The denoiser that a configuration means for data of this layout, with fresh weights.

    config: nodes `net` and `schedule`, and `predict`. layout: `event_shape` of a token, and `static` and `token`,
    names and sizes of the conditioning, where there is one. Raises ValueError if they do not go together.
    """
    schedule = build(config["schedule"], trust=trust, rooms=CHECKPOINT_ROOMS)
    return Precond(_build_net(config, layout, trust), schedule, config["predict"], data_std=config.get("data_std"))


def _build_net(config: Mapping[str, Any], layout: Mapping[str, Any], trust: Iterable[str] | str | None) -> nn.Module:
    shapes = {name: dict(layout[name]) for name in ("static", "token") if layout.get(name)}
    node = config["net"]
    constructor = resolve(dict(node).get("_target_"), trust=trust, rooms=CHECKPOINT_ROOMS)
    if "tokens" in inspect.signature(constructor).parameters:  # a network that tells observations from actions
        if "tokens" not in layout:
            raise ValueError(f"{node['_target_']} is for policies, whose tokens are observations and actions in turn")
        shapes["tokens"] = dict(layout["tokens"])
    net: nn.Module = build(node, trust=trust, rooms=CHECKPOINT_ROOMS,
                           event_shape=tuple(layout["event_shape"]), **shapes)
    return net


def save(folder: str | Path, state: TrainingState, *, config: Mapping[str, Any], layout: Mapping[str, Any],
         normalizer: nn.Module | None = None, coders: nn.Module | None = None,
         extra: Mapping[str, Any] | None = None) -> Path:
    """Writes a checkpoint, replacing one of the same name; killed or out of space, it leaves the old one whole.

    state: `log.training.state()` of an objective that calls its denoiser `denoiser`; its `optim` may be empty.
    config, layout, extra: plain and JSON-able. Raises CheckpointError if the disk refuses, ValueError for the rest.
    """
    if any(name.startswith(BESIDE) for name in state.model):
        raise ValueError(f"the objective has weights named {', '.join(BESIDE)}…, names a checkpoint needs")
    tensors = {**state.model, **_prefixed("ema.", state.ema)}
    for prefix, module in (("normalizer.", normalizer), ("coders.", coders)):
        tensors |= _prefixed(prefix, module.state_dict() if module is not None else {})
    for name, value in [*tensors.items(), *state.optim.items()]:
        if not value.isfinite().all():
            raise FloatingPointError(f"training diverged: {name} is not finite after step {state.step}, and is not "
                                     "saved; go on from the checkpoint before with a lower lr, a longer warmup or clip")
    files = {"state.json": _json({"step": state.step, "record": state.record, "extra": dict(extra or {})}, "state"),
             "config.yaml": yaml.safe_dump(json.loads(_json(config, "config")), sort_keys=False),
             "layout.json": _json(layout, "layout"), "README.md": model_card(Path(folder).name, state, layout)}
    written = {"model": tensors, "optim": state.optim, "carried": state.carried}
    size = sum(t.nbytes for group in written.values() for t in group.values()) + sum(map(len, files.values()))
    versions = {"dforce": dforce.__version__, "python": platform.python_version(), "torch": torch.__version__,
                "safetensors": safetensors.__version__}
    about = {"format": FORMAT, "step": state.step, "versions": versions}
    with sealed(Path(folder), about=about, needed=size) as inside:
        for name, text in files.items():
            (inside / name).write_text(text, encoding="utf-8")
        for name, group in written.items():
            if group:
                write_tensors(inside / f"{name}.safetensors", group)
    return Path(folder)


def load(where: str | Path, *, device: torch.device | str = "cpu", raw: bool = False,
         trust: Iterable[str] | str | None = None) -> Bundle:
    """Loads a denoiser, and with it all that says what its numbers mean. Raises CheckpointError.

    where: a run folder (its newest whole checkpoint), a checkpoint, or the name of a model that ships with dforce. The
    weights are the averaged ones where there are such, unless `raw`. trust: packages beside dforce that it may name.
    """
    folder = find(where)
    parts = _read(folder)
    check_whole(folder, parts)
    with used(folder, "checkpoint"):
        weights, origin = _stripped("denoiser.", parts.tensors), f"the weights in {folder}"
        with torch.device("meta"):  # compared before anything of its size is allocated
            net = _prefixed("net.", _build_net(parts.config, parts.layout, trust).state_dict())
            check_weights(net, {name: value for name, value in weights.items() if name.startswith("net.")}, origin)
        denoiser = build_denoiser(parts.config, parts.layout, trust=trust)
        load_weights(denoiser, weights, origin=origin)
        statistics = _stripped("normalizer.", parts.tensors)
        normalizer = Affine(**statistics).to(device) if statistics else None
        cameras, seen = parts.layout.get("cameras"), _stripped("coders.", parts.tensors)
        coders = built_for(lambda: CameraCoders(**cameras), seen, origin=origin) if cameras else None
        coders = coders and coders.to(device).eval().requires_grad_(False)
    if not raw:  # on top of the raw ones: frozen weights have no average, tied ones only under their first name
        weights = denoiser.state_dict()
        for name, value in _stripped("ema.denoiser.", parts.tensors).items():
            weights[name].copy_(value)
    denoiser = denoiser.to(device).eval()
    return Bundle(denoiser, denoiser.schedule, normalizer, parts.layout, parts.config, parts.state["step"],
                  coders)


def load_state(where: str | Path) -> TrainingState:
    """What `fit(resume=...)` takes, from a checkpoint or a run folder. Raises CheckpointError."""
    parts = _read(find(where))
    model = {name: value for name, value in parts.tensors.items() if not name.startswith(BESIDE)}
    average = _stripped("ema.", parts.tensors)
    return TrainingState(parts.state["step"], model, average, parts.optim, parts.state["record"], parts.carried)


def verify(folder: str | Path) -> dict[str, Any]:
    """The manifest, if every byte is as it was written and this version can read it; else CheckpointError says what."""
    manifest = verified(Path(folder), *sorted(NEEDED))
    if manifest.get("format") not in {*MIGRATIONS, FORMAT}:
        newer = "install a newer dforce" if str(manifest.get("format")) > str(FORMAT) else "no dforce ever wrote it"
        raise CheckpointError(f"{folder} has checkpoint format {manifest.get('format')}, this is dforce "
                              f"{dforce.__version__} with format {FORMAT}: {newer}")
    return manifest


def find(where: str | Path) -> Path:
    """The checkpoint that a path (checkpoint or run folder) or the name of a shipped model means."""
    folder = Path(where)
    recover(folder)
    if (folder / "checkpoints").is_dir():
        return latest(folder / "checkpoints")
    if folder.is_dir():
        return folder
    if (PRETRAINED / str(where)).is_dir() and folder.name == str(where):
        return PRETRAINED / folder
    shipped = sorted(each.name for each in PRETRAINED.iterdir() if each.is_dir()) if PRETRAINED.is_dir() else []
    raise CheckpointError(f"{str(where)!r} is neither a checkpoint, nor a run folder, nor a model that ships with "
                          f"dforce{nearest(str(where), shipped)}")


def step_folder(checkpoints: str | Path, step: int) -> Path:
    """checkpoints/step_00001000: where `latest` and `keep_last` look."""
    return Path(checkpoints) / f"step_{step:08d}"


def latest(checkpoints: str | Path) -> Path:
    """The newest step_* folder that verifies; damaged ones are passed over with a warning. CheckpointError if none."""
    for folder in reversed(step_folders(Path(checkpoints))):
        try:
            verify(folder)
            return folder
        except CheckpointError as error:
            warnings.warn(f"passed over a checkpoint: {error}", stacklevel=2)
    raise CheckpointError(f"{checkpoints} holds no checkpoint that is whole")


def keep_last(checkpoints: str | Path, count: int = 3) -> None:
    """Deletes all step_* folders but the newest `count` >= 1 of them; others (`best`) stay."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    for folder in step_folders(Path(checkpoints))[:-count]:
        shutil.rmtree(folder)


def step_folders(checkpoints: Path) -> list[Path]:
    """The checkpoints step_* of a run, oldest first; what a killed writer left is none."""
    steps = [folder for folder in checkpoints.glob("step_*") if folder.name.removeprefix("step_").isdigit()]
    return sorted(steps, key=lambda folder: int(folder.name.removeprefix("step_")))


def _read(folder: Path) -> Contents:
    """The verified content, brought to the present format."""
    manifest = verify(folder)
    with used(folder, "checkpoint"):
        model, optim, carried = (load_file(folder / f"{name}.safetensors")
                                 if f"{name}.safetensors" in manifest["files"] else {}
                                 for name in ("model", "optim", "carried"))
        state, layout = (json.loads((folder / name).read_text(encoding="utf-8"))
                         for name in ("state.json", "layout.json"))
        config = present(yaml.safe_load(bounded_yaml(folder / "config.yaml")))
        parts = Contents(model, optim, state, config, layout, carried)
    for version in range(manifest["format"], FORMAT):
        parts = MIGRATIONS[version](parts)
    check_contents(folder, manifest, parts)
    return parts


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _stripped(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, indent=1) + "\n"
    except TypeError as error:
        raise ValueError(f"{what} must be plain (dicts, lists, strings, numbers): {error}") from None
