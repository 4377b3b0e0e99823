"""Training of a world model: clips and their actions to a model that rolls out."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dforce.data.batch import Batch
from dforce.data.pixels import to_uint8
from dforce.data.video.dataset import VideoClips
from dforce.report.rows import Row
from dforce.runs.folder import RunFolder
from dforce.runs.progress import bar
from dforce.runs.training_run import DenoiserTraining, Prepared
from dforce.train.checkpoint import Bundle
from dforce.train.distributed import join
from dforce.video.copying import copying_rows, copying_sentence
from dforce.video.film import strip
from dforce.video.latents import load_latents
from dforce.video.metrics.measure import RowMaker
from dforce.video.model import VideoModel, load_video
from dforce.video.reference_clips import unstacked
from dforce.video.stream import Recipe, continued

COLUMNS = 12    # pictures in a row of the picture


@dataclass(frozen=True, kw_only=True)
class VideoTraining(DenoiserTraining):
    """A training of `dforce train video`. The keys are explained in configs/verbs/train/video.yaml."""

    data: str
    size: int | tuple[int, int] | None
    frames: int
    stack: int
    stride: int
    action_offset: int | None
    actions: int | None
    fps: float | None
    cache: bool | str
    held_out: float
    latents: str | None
    samples: int

    def prepare(self) -> Prepared:
        """Data, model and training loop, or ValueError. Its `data` are the held-out clips, None without."""
        clips = self._clips()
        held_out = self._clips(split="val") if self.held_out else None
        event, encoded = self._tokens(clips)
        layout = {**clips.layout, "digest": _digest(clips), "event_shape": [*event], "latents": self.latents,
                  "token": {"action": clips.action_width} if clips.action_width else {}}

        def differing(bundle: Bundle) -> str | None:
            keys = [key for key in ("digest", "event_shape", "token") if bundle.layout.get(key) != layout[key]]
            return f" (other {', '.join(keys)})" if keys else None

        return self.begin(layout, encoded(clips), what="the clips of", differing=differing, data=held_out,
                          shards=clips.virtual_shards, validate=held_out and encoded(held_out))

    def finish(self, prepared: Prepared, folder: RunFolder, newest: Path) -> None:
        """What it learnt beside keeping the last frame; a picture of held-out clips, continued with their actions."""
        model = load_video(newest, device=self.device, trust=self.trust)
        rows: list[Row] = []
        said = "No clip is held out, so nothing says whether it does better than keeping the last frame."
        if prepared.data is not None:
            rows = copying_rows(model, lambda step: unstacked(prepared.data.batch_at(step), self.stack),
                                RowMaker(self.data, "model", {}), seed=self.seed)
            said = copying_sentence(rows)
            if self.samples and self.latents is None:
                self._picture(folder, model, prepared.data)
        folder.results(rows, summary=f"Trained for {prepared.steps} steps. {said}")
        print(said)

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return join(self.fit.keywords.get("device")).device

    def _clips(self, **split: Any) -> VideoClips:
        with bar("read clips") as advance:
            return VideoClips(self.data, frames=self.frames, size=self.size, stride=self.stride, stack=self.stack,
                              batch=self.batch, seed=self.seed, held_out=self.held_out, actions=self.actions,
                              action_offset=self.action_offset, fps=self.fps, cache=self.cache,
                              sequential=self.carry, advance=advance, **split)

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

    def _picture(self, folder: RunFolder, model: VideoModel, held_out: VideoClips) -> None:
        """media/frames.png: held-out clips, and what the model makes of their beginnings, under the same actions."""
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
        folder.captions({"frames.png": (
            f"Held-out clips, and what the model makes of their first {context} frames under the same actions; the "
            f"numbers count frames, training windows had {self.frames}.")})


def _digest(clips: VideoClips) -> str:
    """Of the names and lengths of all clips: a run goes on with the data that it began with."""
    names = json.dumps([[clip.name, clip.frames] for clip in clips.clips])
    return hashlib.sha256(names.encode()).hexdigest()[:16]
