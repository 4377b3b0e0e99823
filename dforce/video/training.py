"""Training of a world model: clips and their actions to a model that rolls out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dforce.config import Node
from dforce.data.batch import Batch
from dforce.data.pixels import to_uint8
from dforce.data.video.dataset import VideoClips
from dforce.runs.folder import RunFolder, write_atomic
from dforce.runs.training_run import FEW, Prepared, has_checkpoint
from dforce.train.checkpoint import build_denoiser, load, load_state
from dforce.train.distributed import join
from dforce.train.state import TrainingState
from dforce.video.film import strip
from dforce.video.latents import load_latents
from dforce.video.model import load_video
from dforce.video.stream import Recipe, continued

COLUMNS = 12    # pictures in a row of the picture


@dataclass(frozen=True)
class VideoTraining:
    """A training of `dforce train video`. The keys are explained in configs/verbs/train/video.yaml."""

    model: Node  # nodes `net` and `schedule`, and `predict`
    data: str
    size: int | tuple[int, int] | None
    frames: int
    stack: int
    stride: int
    action_offset: int | None
    actions: int | None
    fps: float | None
    cache: bool | str
    batch: int
    held_out: float
    latents: str | None
    carry: bool
    objective: Callable[..., Any]  # (denoiser, schedule) -> objective
    fit: partial[Any]  # `dforce.fit`, waiting for objective and data
    samples: int
    seed: int
    save_every: int
    keep: int
    fast_dev_run: bool = False
    resume: str | None = None  # run folder or checkpoint to go on from
    trust: str | None = None

    def prepare(self) -> Prepared:
        """Data, model and training loop, or ValueError. Its `data` are the held-out clips, None without."""
        clips = self._clips()
        held_out = self._clips(split="val") if self.held_out else None
        event, encoded = self._tokens(clips)
        layout = {**clips.layout, "digest": _digest(clips), "event_shape": [*event], "latents": self.latents,
                  "token": {"action": clips.action_width} if clips.action_width else {}}
        torch.manual_seed(self.seed)
        denoiser = build_denoiser(self.model, layout, trust=self.trust)
        objective = self.objective(denoiser, denoiser.schedule, **({"carry": True} if self.carry else {}))
        state = self._state(layout)
        options = FEW if self.fast_dev_run else {}
        logs = self.fit(objective, encoded(clips), seed=self.seed, resume=state, shards=clips.virtual_shards,
                        validate=held_out and encoded(held_out), **options)
        return Prepared(logs, {"layout": layout}, state.step if state else 0,
                        options.get("steps", self.fit.keywords["steps"]), held_out)

    def finish(self, prepared: Prepared, folder: RunFolder, newest: Path) -> None:
        """A picture of held-out clips, continued with their own actions."""
        if self.samples and prepared.data is not None and self.latents is None:
            self._picture(folder, newest, prepared.data)

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return join(self.fit.keywords.get("device")).device

    def _clips(self, **split: Any) -> VideoClips:
        return VideoClips(self.data, frames=self.frames, size=self.size, stride=self.stride, stack=self.stack,
                          batch=self.batch, seed=self.seed, held_out=self.held_out, action_offset=self.action_offset,
                          actions=self.actions, fps=self.fps, cache=self.cache, sequential=self.carry, **split)

    def _tokens(self, clips: VideoClips) -> tuple[tuple[int, ...], Callable[[VideoClips], Callable[..., Batch]]]:
        """The shape of a token, and what makes batches of tokens of clips."""
        if self.latents is None:
            return clips.event_shape, lambda source: source.batch_at
        if self.stack != 1:
            raise ValueError(f"a latent stands for one frame: latents={self.latents} takes stack=1, got {self.stack}")
        latents = load_latents(self.latents, device=self.device)

        def encoded(source: VideoClips) -> Callable[..., Batch]:
            def batch_at(step: int, **which: Any) -> Batch:
                batch = source.batch_at(step, **which)
                return batch._replace(x=latents.encode(batch.x))
            return batch_at
        return latents.event_shape(clips.event_shape), encoded

    def _state(self, layout: dict[str, Any]) -> TrainingState | None:
        """Where the run stopped; None for a new run, and for one that was stopped before its first checkpoint."""
        if not self.resume or not has_checkpoint(Path(self.resume)):
            return None
        before = load(self.resume, trust=self.trust).layout
        changed = [key for key in ("digest", "event_shape", "token") if before.get(key) != layout[key]]
        if changed:
            raise ValueError(f"the clips of {self.data} are not those that {self.resume} was trained on (other "
                             f"{', '.join(changed)}): bring the old ones back, or start a new run")
        return load_state(self.resume)

    def _picture(self, folder: RunFolder, checkpoint: Path, held_out: VideoClips) -> None:
        """media/frames.png: held-out clips, and what the model makes of their beginnings, under the same actions."""
        model = load_video(checkpoint, device=self.device, trust=self.trust)
        count = min(self.samples, len(held_out.clips))
        real = held_out.sequence(range(count))
        frames, shown = model.frames(real.x), min(2 * self.frames, real.x.shape[1] * self.stack)
        shown, context = shown // self.stack * self.stack, max(1, self.frames // 4 // self.stack) * self.stack
        if not model.denoiser.causal or shown <= context:
            return
        given = real.cond.get("token", {}).get("action", real.x.new_zeros(*real.x.shape[:2], 0))
        per_frame = given.unflatten(2, (self.stack, -1)).flatten(1, 2)

        def actions(frame: int, number: int) -> Tensor:
            return per_frame[:, frame:frame + number]

        made = continued(model, Recipe(chunk=self.stack), frames[:, :context], shown - context,
                         actions=actions if model.actions else None).cpu()
        after = torch.cat([frames[:, :context], made], 1)
        rows = torch.stack([frames[:, :shown], after], 1).flatten(0, 1)  # each clip, its continuation
        at = sorted({round(i * (shown - 1) / (COLUMNS - 1)) for i in range(COLUMNS)})
        labels = [name for i in range(count) for name in (f"clip {i}", "model")]
        strip(to_uint8(rows.transpose(0, 1)), at, folder.media / "frames.png", labels=labels)
        write_atomic(folder.media / "captions.json", json.dumps({"frames.png": (
            f"Held-out clips, and what the model makes of their first {context} frames under the same actions; the "
            f"numbers count frames, training windows had {self.frames}.")}) + "\n")


def _digest(clips: VideoClips) -> str:
    """Of the names and lengths of all clips: a run goes on with the data that it began with."""
    names = json.dumps([[clip.name, clip.frames] for clip in clips.clips])
    return hashlib.sha256(names.encode()).hexdigest()[:16]
