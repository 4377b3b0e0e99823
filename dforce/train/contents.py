"""What the files of a checkpoint must hold: a digest says that they are as they were written, not who wrote them."""

import math
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from dforce.config import Node, check_numbers
from dforce.config.values import described, fits
from dforce.train.atomic_folder import CheckpointError
from dforce.train.interrupts import stop_if_received

MOMENTS = {"step", "exp_avg", "exp_avg_sq"}  # of AdamW, for every parameter
NEEDED = {"state.json", "config.yaml", "layout.json", "model.safetensors"}


class Contents(NamedTuple):
    """What the files of a checkpoint hold before anything is built of it; a migration may change all of it."""

    tensors: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict[str, Any]
    config: dict[str, Any]
    layout: dict[str, Any]
    carried: dict[str, Tensor] = {}


class _State(TypedDict):
    step: int
    record: dict[str, Any]
    extra: dict[str, Any]


class _Record(TypedDict, total=False):
    seed: int
    parts: int
    precision: typing.Literal["fp32", "bf16"]
    skipped: int


class _Config(TypedDict, total=False):
    net: typing.Required[Node]
    schedule: typing.Required[Node]
    predict: typing.Required[str]
    data_std: float | None
    planner: Node
    recipe: Node
    data: str | None
    seed: int | None


class _Layout(TypedDict, total=False):
    event_shape: typing.Required[tuple[int, ...]]
    static: dict[str, int] | None
    token: dict[str, int] | None
    stack: int
    horizon: int
    observation: tuple[int, int]
    action: tuple[int, int]
    names: tuple[str, ...]
    dt: float
    classes: tuple[str, ...]
    rows: tuple[str, ...]
    env: str
    dataset: str
    kind: str
    frames: int
    stride: int
    size: tuple[int, int]
    channels: int
    actions: int
    latents: str | None
    cameras: dict[str, Any]
    pipeline: str


class _Cameras(TypedDict):
    sizes: dict[str, tuple[int, int]]
    side: int
    width: int
    colors: int
    channels: int


SIZES = ("event_shape", "stack", "horizon", "frames", "size", "channels", "stride", "dt")  # of a layout
TOGETHER = {"observation": ("action", "stack", "horizon"), "classes": ("dataset",),  # who has one needs those
            "cameras": ("tokens",)}
OF_KIND = {None: (), "video": ("size", "channels", "frames", "stack"), "policy": ("tokens", "names"),
           "pipeline": ("pipeline",)}


@contextmanager
def used(folder: Path, what: str) -> Iterator[None]:
    """Inside, whatever cannot be read from a folder, or built of what it holds, is a CheckpointError of one line."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        stop_if_received()
        reason = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(f"cannot use the {what} {folder}: {reason}") from error


def check_contents(folder: Path, manifest: Mapping[str, Any], parts: Contents) -> None:
    """CheckpointError, which names the file and what is wrong, for contents that no training writes."""
    with used(folder, "checkpoint"):
        _fits(parts.state, _State, "state.json")
        _fits(parts.state["record"], _Record, "record in state.json")
        _fits(parts.layout, _Layout, "layout.json")
        if parts.layout.get("kind") != "pipeline":  # whose networks are in a folder of their own
            _fits(parts.config, _Config, "config.yaml")
        for key in ("static", "token"):
            check_numbers([*(parts.layout.get(key) or {}).values()], where=key)
        check_numbers({key: parts.layout.get(key) for key in SIZES})
        if not 0 <= parts.state["step"] == manifest.get("step"):
            raise ValueError(f"state.json has step {parts.state['step']}, MANIFEST.json {manifest.get('step')!r}")
        kind = parts.layout.get("kind")
        if kind not in OF_KIND:
            raise ValueError(f"layout.json is of kind {kind!r}; known are {', '.join(filter(None, OF_KIND))}")
        for key, needs in {**TOGETHER, "kind": OF_KIND[kind]}.items():
            lost = [need for need in needs if need not in parts.layout]
            if key in parts.layout and lost:
                raise ValueError(f"layout.json has {key}, but no {', '.join(lost)}")
        _check_tensors(parts)
        _check_normalizer(parts)
        _check_cameras(parts.layout)


def check_whole(folder: Path, parts: Contents) -> None:
    """CheckpointError where there is no model, but what was tuned of one in another folder."""
    source = parts.layout.get("pipeline")
    if source is not None:
        raise CheckpointError(f"{folder} holds what was tuned of the pipeline {source}, and no model of its own: "
                              f"dforce sample pipeline pipeline={source} lora={folder}")


def _fits(value: Any, schema: Any, where: str) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} must hold a mapping, got {str(value)[:40]!r}")
    lost = sorted(key for key in schema.__required_keys__ if key not in value)
    if lost:
        raise ValueError(f"{where} has no {', '.join(lost)}")
    for key, hint in typing.get_type_hints(schema).items():
        if key in value and not fits(value[key], hint):
            raise ValueError(f"{key} in {where} must be {described(hint)}, got {str(value[key])[:60]!r}")


def _check_tensors(parts: Contents) -> None:
    """Every number finite; averages and moments belong to weights, and have their shapes and formats."""
    files = {"model.safetensors": parts.tensors, "optim.safetensors": parts.optim,
             "carried.safetensors": parts.carried}
    for file, tensors in files.items():
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{name} in {file} is not finite")
    for name, value in parts.tensors.items():
        if name.startswith("ema."):
            _alike(name, value, name.removeprefix("ema."), parts.tensors)
    # the moments of low-rank adapters are here, the adapters in a folder of their own
    learnt = {**parts.tensors, **{name.removesuffix(".exp_avg"): value for name, value in parts.optim.items()
                                  if name.endswith((".lowrank.a.exp_avg", ".lowrank.b.exp_avg"))}}
    moments: dict[str, set[str]] = {}
    for key, value in parts.optim.items():
        name, _, moment = key.rpartition(".")
        moments.setdefault(name, set()).add(moment)
        if moment == "step" and value.shape == () and value.dtype == torch.float32 and value >= 0:
            continue
        _alike(key, value, name, learnt)
        if moment == "exp_avg_sq" and (value < 0).any():
            raise ValueError(f"{key} in optim.safetensors is a mean square below 0")
    averages = {name.removeprefix("ema.") for name in parts.tensors if name.startswith("ema.")}
    if averages and moments and averages != moments.keys() and moments.keys() <= parts.tensors.keys():
        lost = sorted(averages ^ moments.keys())
        raise ValueError(f"averages and moments are of unlike weights: one of them lacks {', '.join(lost[:3])}")
    for name, those in moments.items():
        if those != MOMENTS:
            raise ValueError(f"optim.safetensors has {', '.join(sorted(those))} of {name}, not "
                             f"{', '.join(sorted(MOMENTS))}")
    if [*sorted(parts.carried, key=int)] != [str(i) for i in range(len(parts.carried))]:
        raise ValueError(f"carried.safetensors has {', '.join(parts.carried)}, not 0, 1, ...")


def _alike(key: str, value: Tensor, name: str, weights: Mapping[str, Tensor]) -> None:
    if name not in weights:
        raise ValueError(f"{key} belongs to no weights of model.safetensors")
    if (value.shape, value.dtype) != (weights[name].shape, weights[name].dtype):
        raise ValueError(f"{key} has shape {[*value.shape]} and format {value.dtype}, its weights "
                         f"{[*weights[name].shape]} and {weights[name].dtype}")


def _check_cameras(layout: Mapping[str, Any]) -> None:
    """Every camera is a part of an observation, as wide as its coder has numbers."""
    if "cameras" not in layout:
        return
    _fits(layout["cameras"], _Cameras, "cameras in layout.json")
    check_numbers(layout["cameras"], where="cameras")
    check_numbers({"size": [*layout["cameras"]["sizes"].values()]}, where="cameras")
    numbers = layout["cameras"]["width"] + 3 * layout["cameras"]["colors"]
    for name in layout["cameras"]["sizes"]:
        if layout["tokens"]["parts"].get(name) != numbers:
            raise ValueError(f"layout.json has the camera {name} of {numbers} numbers, and parts "
                             f"{layout['tokens']['parts']}")


def _check_normalizer(parts: Contents) -> None:
    """The mean and the deviation of every column of a token before it is stacked."""
    names = {name for name in parts.tensors if name.startswith("normalizer.")}
    if not names:
        return
    if names != {"normalizer.mean", "normalizer.std"}:
        raise ValueError(f"model.safetensors has {', '.join(sorted(names))}, not the mean and std of a normaliser")
    width, size = parts.tensors["normalizer.mean"].numel(), math.prod(parts.layout["event_shape"])
    if parts.layout.get("kind") == "policy":  # observations and actions are tokens of their own, padded to one width
        size = len(parts.layout["names"])
    if width * parts.layout.get("stack", 1) != size or parts.tensors["normalizer.std"].numel() != width:
        raise ValueError(f"a normaliser of {width} and {parts.tensors['normalizer.std'].numel()} columns does not fit "
                         f"tokens of {size} numbers")
    for key in ("observation", "action"):
        lo, hi = parts.layout.get(key, (0, 0))
        if not 0 <= lo <= hi <= width:
            raise ValueError(f"{key} in layout.json, {[lo, hi]}, does not lie within {width} columns")
