"""`dforce train video`: clips and their actions to a world model that rolls out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from dforce.config import build
from dforce.data.batch import Batch
from dforce.data.pixels import to_uint8
from dforce.data.video.dataset import VideoClips
from dforce.runs.folder import RunFolder, write_atomic
from dforce.runs.training_run import FEW, Kind, Prepared, carry_out, has_checkpoint, run_kind
from dforce.train.checkpoint import build_denoiser, load, load_state
from dforce.train.distributed import join
from dforce.train.fit import TrainingState
from dforce.video.film import strip
from dforce.video.model import load_video
from dforce.video.stream import Recipe, continued

FOLDER = False  # as in `dforce train`
CLIPS = ("size", "frames", "stack", "stride", "batch", "seed", "held_out", "action_offset", "actions", "fps", "cache")
COLUMNS = 12    # pictures in a row of the picture


def run(cfg: Any, _: None = None) -> None:
    """Trains as cfg says; checkpoints, metrics and the page go into the run folder."""
    run_kind(KIND, cfg)


def prepare(cfg: Any) -> Prepared:
    """Data, model and training loop of cfg, or ValueError. data: the held-out clips, None without."""
    clips, held_out = _clips(cfg)
    event, batch_at, validate = clips.event_shape, clips.batch_at, held_out and held_out.batch_at
    layout = {**clips.layout, "digest": _digest(clips)}
    if cfg.latents is not None:
        event, batch_at, validate = _in_latents(cfg, clips, held_out)
    layout |= {"event_shape": [*event], "latents": cfg.latents,
               "token": {"action": clips.action_width} if clips.action_width else {}}
    torch.manual_seed(cfg.seed)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    denoiser = build_denoiser(config, layout, trust=cfg.trust)
    carry = {"carry": True} if cfg.carry else {}
    objective = build(cfg.objective, trust=cfg.trust)(denoiser, denoiser.schedule, **carry)
    state = _state(cfg, layout)
    options = FEW if cfg.fast_dev_run else {}
    logs = build(cfg.fit, trust=cfg.trust)(objective, batch_at, seed=cfg.seed, resume=state,
                                           shards=clips.virtual_shards, validate=validate, **options)
    return Prepared(logs, {"config": config, "layout": layout}, state.step if state else 0,
                    options.get("steps", cfg.fit.steps), held_out)


def _clips(cfg: Any) -> tuple[VideoClips, VideoClips | None]:
    plain: Any = OmegaConf.to_container(cfg)
    options: dict[str, Any] = {key: plain[key] for key in CLIPS}
    clips = VideoClips(cfg.data, sequential=cfg.carry, **options)
    if not cfg.held_out:
        return clips, None
    return clips, VideoClips(cfg.data, sequential=cfg.carry, split="val", **options)


def _digest(clips: VideoClips) -> str:
    """Of the names and lengths of all clips: a run goes on with the data that it began with."""
    names = json.dumps([[clip.name, clip.frames] for clip in clips.clips])
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def _state(cfg: Any, layout: dict[str, Any]) -> TrainingState | None:
    """Where cfg.resume stopped; None for a new run, and for one that was stopped before its first checkpoint."""
    if not cfg.resume or not has_checkpoint(Path(cfg.resume)):
        return None
    before = load(cfg.resume, trust=cfg.trust).layout
    changed = [key for key in ("digest", "event_shape", "token") if before.get(key) != layout[key]]
    if changed:
        raise ValueError(f"the clips of {cfg.data} are not those that {cfg.resume} was trained on (other "
                         f"{', '.join(changed)}): bring the old ones back, or start a new run")
    return load_state(cfg.resume)


def _in_latents(cfg: Any, clips: VideoClips, held_out: VideoClips | None,
                ) -> tuple[tuple[int, ...], Callable[..., Batch], Callable[[int], Batch] | None]:
    """Shape of a token, and batches, in the latents of the autoencoder cfg.latents."""
    from dforce.video.latents import load_latents

    if cfg.stack != 1:
        raise ValueError(f"a latent stands for one frame: latents={cfg.latents} takes stack=1, got {cfg.stack}")
    latents = load_latents(cfg.latents, device=join(cfg.fit.get("device")).device)

    def encoded(source: VideoClips) -> Callable[..., Batch]:
        def batch_at(step: int, **which: Any) -> Batch:
            batch = source.batch_at(step, **which)
            return batch._replace(x=latents.encode(batch.x))
        return batch_at
    return latents.event_shape(clips.event_shape), encoded(clips), encoded(held_out) if held_out else None


def work(prepared: Prepared, cfg: Any, folder: RunFolder) -> None:
    """Trains the model; continues some held-out clips with their own actions, as a picture."""
    newest = carry_out(prepared, cfg, folder)
    if folder.writes and cfg.samples and prepared.data is not None and cfg.latents is None:
        _picture(cfg, folder, newest, prepared.data)


def _picture(cfg: Any, folder: RunFolder, checkpoint: Path, held_out: VideoClips) -> None:
    """media/frames.png: held-out clips, and what the model makes of their beginnings, under the same actions."""
    model = load_video(checkpoint, device=join(cfg.fit.get("device")).device, trust=cfg.trust)
    count = min(cfg.samples, len(held_out.clips))
    real = held_out.sequence(range(count))
    frames, shown = model.frames(real.x), min(2 * cfg.frames, real.x.shape[1] * cfg.stack)
    shown, context = shown // cfg.stack * cfg.stack, max(1, cfg.frames // 4 // cfg.stack) * cfg.stack
    if not getattr(model.denoiser, "causal", False) or shown <= context:
        return
    given = real.cond.get("token", {}).get("action", real.x.new_zeros(*real.x.shape[:2], 0))
    per_frame = given.unflatten(2, (cfg.stack, -1)).flatten(1, 2)

    def actions(frame: int, number: int) -> Tensor:
        return per_frame[:, frame:frame + number]

    made = continued(model, Recipe(chunk=cfg.stack), frames[:, :context], shown - context,
                     actions=actions if model.actions else None).cpu()
    after = torch.cat([frames[:, :context], made], 1)
    rows = torch.stack([frames[:, :shown], after], 1).flatten(0, 1)  # each clip, its continuation
    at = sorted({round(i * (shown - 1) / (COLUMNS - 1)) for i in range(COLUMNS)})
    labels = [name for i in range(count) for name in (f"clip {i}", "model")]
    strip(to_uint8(rows.transpose(0, 1)), at, folder.media / "frames.png", labels=labels)
    write_atomic(folder.media / "captions.json", json.dumps({"frames.png": (
        f"Held-out clips, and what the model makes of their first {context} frames under the same actions; the numbers "
        f"count frames, training windows had {cfg.frames}.")}) + "\n")


KIND = Kind("train/video", frozenset({"fit", "data", "net", "frames", "latents"}), prepare, work,
            lambda folder: f"open {folder / 'index.html'}; roll it out with: dforce rollout checkpoint={folder}")
