"""A rollout on disk: its frames without loss, appended as they come, and the state to continue from bit for bit.

    frames.u8           uint8 [frames, batch, height, width, channels], appended to
    actions.f32         float32 [frames, batch, numbers], appended to, where the model takes actions
    state.safetensors   the carried state, the number of frames before it, and the settings that decide the frames
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dforce.core.rollout import Recent
from dforce.core.tree import State
from dforce.train.atomic_folder import MB
from dforce.train.sealed_file import load_file_sealed, save_file_sealed
from dforce.video.baselines import WindowPast

FRAMES, ACTIONS = "frames.u8", "actions.f32"
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
        self._files = (FRAMES, ACTIONS) if actions else (FRAMES,)
        self._digests = {name: hashlib.sha256() for name in self._files}
        if resume and self._file.is_file():
            self._read()
        for name in self._files:
            self._cut(name)

    @property
    def _file(self) -> Path:
        return self.folder / "state.safetensors"

    def _read(self) -> None:
        tensors, about = load_file_sealed(self._file, "state of a rollout")
        changed = [f"{key} was {about['settings'].get(key)}, is {self.settings.get(key)}"
                   for key in {**about["settings"], **self.settings}
                   if about["settings"].get(key) != self.settings.get(key)]
        if changed:
            raise ValueError(f"the rollout in {self.folder} was made otherwise ({'; '.join(changed[:3])}): go on as it "
                             "was, or start anew in another out=")
        self.frames_done, self.chunks = about["frames"], about["chunks"]
        self.state = unflatten(about["state"], tensors)
        for name, digest in about["digests"].items():
            with open(self.folder / name, "rb") as file:
                left = self.frames_done * self._size(name)
                while left and (part := file.read(min(left, MB))):
                    self._digests[name].update(part)
                    left -= len(part)
            if left or self._digests[name].hexdigest() != digest:
                raise ValueError(f"{self.folder / name} is damaged: it is not what was written before frame "
                                 f"{self.frames_done}; start anew in another out=")

    def _size(self, name: str) -> int:
        """Bytes of a frame of all rollouts in a file."""
        return int(np.prod(self.shape)) if name == FRAMES else 4 * self.shape[0] * self.actions

    def _cut(self, name: str) -> None:
        """Drops what was written after the state."""
        with open(self.folder / name, "ab") as content:
            content.truncate(self.frames_done * self._size(name))

    def append(self, frames: np.ndarray, actions: Tensor | None) -> None:
        """frames: uint8 [B, n, H, W, C]; actions: [B, n, A] where the model takes some."""
        if frames.dtype != np.uint8 or (frames.shape[0], *frames.shape[2:]) != self.shape:
            raise ValueError(f"frames must be uint8 [B, n, H, W, C] with B, H, W, C = {self.shape}, got {frames.dtype} "
                             f"{frames.shape}")
        self._append(FRAMES, frames.swapaxes(0, 1))
        if self.actions and actions is not None:
            self._append(ACTIONS, actions.transpose(0, 1).float().cpu().numpy())

    def _append(self, name: str, rows: np.ndarray) -> None:
        content = np.ascontiguousarray(rows).tobytes()
        self._digests[name].update(content)
        with open(self.folder / name, "ab") as file:
            file.write(content)

    def save(self, state: State, *, chunks: int, frames: int) -> None:
        """Writes the point to continue from; a crash leaves the old one or the new one."""
        tensors: dict[str, Tensor] = {}
        about = {"state": flatten(state, tensors), "chunks": chunks, "frames": frames, "settings": self.settings,
                 "digests": {name: self._digests[name].hexdigest() for name in self._files}}
        for name in self._files:
            with open(self.folder / name, "rb") as file:
                os.fsync(file.fileno())
        save_file_sealed(self._file, tensors or {"none": torch.zeros(1)}, about)
        self.frames_done, self.chunks, self.state = frames, chunks, state

    def frames(self) -> np.ndarray:
        """uint8 [frames, B, H, W, C], mapped from disk."""
        file = self.folder / FRAMES
        count = file.stat().st_size // int(np.prod(self.shape))
        shape = (count, *self.shape)
        return np.memmap(file, np.uint8, "r", shape=shape) if count else np.zeros(shape, np.uint8)

    def actions_fed(self) -> np.ndarray | None:
        """float32 [frames, B, A], None for a model without actions."""
        if not self.actions:
            return None
        return np.fromfile(self.folder / ACTIONS, np.float32).reshape(-1, self.shape[0], self.actions)
