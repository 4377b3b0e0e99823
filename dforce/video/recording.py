"""A rollout on disk: its frames without loss, appended as they come, and the state to continue from bit for bit.

    frames.u8           uint8 [frames, batch, height, width, channels], appended to
    actions.f32         float32 [frames, batch, numbers], appended to, where the model takes actions
    state.safetensors   the carried state, the number of frames before it, and the settings that decide the frames
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dforce.core.rollout import Recent
from dforce.core.tree import State
from dforce.video.baselines import WindowPast

TUPLES: dict[str, Any] = {"Recent": Recent, "WindowPast": WindowPast, "Seen": WindowPast}  # Seen: its name before


def flatten(state: State, tensors: dict[str, Tensor]) -> Any:
    """A description of the state in plain values; its tensors go into `tensors`, on the CPU. `unflatten` undoes it."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        name = str(len(tensors))
        tensors[name] = state.detach().cpu().contiguous().clone()
        return name
    if isinstance(state, dict):
        return {"dict": {key: flatten(value, tensors) for key, value in state.items()}}
    if type(state).__name__ in TUPLES or type(state) in (list, tuple):
        return {type(state).__name__: [flatten(value, tensors) for value in state]}
    raise TypeError(f"a state is made of tensors, dicts, lists and tuples, got a {type(state).__name__}")


def unflatten(about: Any, tensors: dict[str, Tensor]) -> State:
    """The state that `flatten` described."""
    if about is None:
        return None
    if isinstance(about, str):
        return tensors[about]
    (kind, inner), = about.items()
    if kind == "dict":
        return {key: unflatten(value, tensors) for key, value in inner.items()}
    values = [unflatten(value, tensors) for value in inner]
    return TUPLES[kind](*values) if kind in TUPLES else {"list": list, "tuple": tuple}[kind](values)


class Record:
    """Frames and actions of the rollouts of one run, [T, B, H, W, C] and [T, B, A].

    shape: (B, H, W, C). actions: A, 0 for a model without. settings: plain values that decide the frames; ValueError
    where they differ from the folder's. resume: continue what the folder holds, at `chunks` and `state`.
    """

    def __init__(self, folder: Path, *, shape: tuple[int, int, int, int], actions: int, settings: dict[str, Any],
                 resume: bool = False):
        self.folder, self.shape, self.actions = folder, shape, actions
        self.settings = json.loads(json.dumps(settings))
        self.frames_done, self.chunks, self.state = 0, 0, None
        if resume and self._file.is_file():
            self._read()
        self._cut("frames.u8", int(np.prod(shape)))
        if actions:
            self._cut("actions.f32", 4 * shape[0] * actions)

    @property
    def _file(self) -> Path:
        return self.folder / "state.safetensors"

    def _read(self) -> None:
        try:
            with safe_open(self._file, "pt") as content:
                about = json.loads((content.metadata() or {})["rollout"])
                # cloned, for where a tensor begins in memory decides which kernels see it: the last bit may differ
                tensors = {name: content.get_tensor(name).clone() for name in content.keys()}
        except (SafetensorError, KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{self._file} cannot be read ({error}); start anew in another out=") from error
        changed = [f"{key} was {about['settings'].get(key)}, is {self.settings.get(key)}"
                   for key in {**about["settings"], **self.settings}
                   if about["settings"].get(key) != self.settings.get(key)]
        if changed:
            raise ValueError(f"the rollout in {self.folder} was made otherwise ({'; '.join(changed[:3])}): go on as it "
                             "was, or start anew in another out=")
        self.frames_done, self.chunks = about["frames"], about["chunks"]
        self.state = unflatten(about["state"], tensors)

    def _cut(self, name: str, size: int) -> None:
        """Drops what was written after the state; ValueError if the file ends before the state."""
        file, wanted = self.folder / name, self.frames_done * size
        with open(file, "ab") as content:
            length = content.tell()
            if length < wanted:
                raise ValueError(f"{file} holds {length // size} frames of {self.frames_done}; take another out=")
            content.truncate(wanted)

    def append(self, frames: np.ndarray, actions: Tensor | None) -> None:
        """frames: uint8 [B, n, H, W, C]; actions: [B, n, A] where the model takes some."""
        if frames.dtype != np.uint8 or (frames.shape[0], *frames.shape[2:]) != self.shape:
            raise ValueError(f"frames must be uint8 [B, n, H, W, C] of {self.shape}, got {frames.dtype} {frames.shape}")
        with open(self.folder / "frames.u8", "ab") as file:
            file.write(np.ascontiguousarray(frames.swapaxes(0, 1)).tobytes())
        if self.actions and actions is not None:
            with open(self.folder / "actions.f32", "ab") as file:
                file.write(np.ascontiguousarray(actions.transpose(0, 1).float().cpu().numpy()).tobytes())

    def save(self, state: State, *, chunks: int, frames: int) -> None:
        """Writes the point to continue from; a crash leaves the old one or the new one."""
        tensors: dict[str, Tensor] = {}
        about = {"state": flatten(state, tensors), "chunks": chunks, "frames": frames, "settings": self.settings}
        partial = self._file.with_name(self._file.name + ".part")
        save_file(tensors or {"none": torch.zeros(1)}, partial, metadata={"rollout": json.dumps(about)})
        for name in ("frames.u8", "actions.f32"):
            if (self.folder / name).is_file():
                with open(self.folder / name, "rb") as file:
                    os.fsync(file.fileno())
        os.replace(partial, self._file)
        self.frames_done, self.chunks, self.state = frames, chunks, state

    def frames(self) -> np.ndarray:
        """uint8 [frames, B, H, W, C], mapped from disk."""
        file = self.folder / "frames.u8"
        count = file.stat().st_size // int(np.prod(self.shape))
        shape = (count, *self.shape)
        return np.memmap(file, np.uint8, "r", shape=shape) if count else np.zeros(shape, np.uint8)

    def actions_fed(self) -> np.ndarray | None:
        """float32 [frames, B, A], None for a model without actions."""
        if not self.actions:
            return None
        return np.fromfile(self.folder / "actions.f32", np.float32).reshape(-1, self.shape[0], self.actions)
