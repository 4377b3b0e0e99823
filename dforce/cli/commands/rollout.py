"""`dforce rollout`: a video model rolled out as far as one likes, filmed as it goes, and held against real video."""

from __future__ import annotations

import contextlib
import hashlib
import time
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from torch import Tensor

from dforce.core.noise import Noise
from dforce.core.tree import leaves
from dforce.data.pixels import from_uint8, to_uint8
from dforce.report.table import markdown_table
from dforce.runs.checkpoint_defaults import suited
from dforce.runs.folder import RunFolder, Ticker, write_atomic
from dforce.train.precision import device_of
from dforce.video.evaluation import Wanted, report
from dforce.video.film import Film, enlarge, grid, strip
from dforce.video.metrics.measure import row
from dforce.video.model import VideoModel, load_video
from dforce.video.recording import Record
from dforce.video.reference_clips import Clip, RealVideo, fed
from dforce.video.stream import Actions, Recipe, begin, stream
from dforce.video.walker import FILE, Walker

FILMED = 8       # rollouts in the film
LOOKS = (0, 1, 5, 10, 20, 50, 100, 200, 300, 500, 700, 900, 999, 2000, 5000, 10_000)  # frames of the strip
FEW = {"frames": 12, "samples": 2, "feature_steps": 5, "window": 4}  # fast_dev_run
RECIPE = ("method", "steps", "order", "eta", "spacing", "chunk", "delay", "stabilise_std", "mode", "clamp", "keep",
          "history", "history_std")


def run(cfg: Any, folder: RunFolder) -> None:
    """Rolls out, films, measures; or serves the model to a browser."""
    if not cfg.checkpoint:
        raise ValueError("checkpoint is needed: a run folder or a checkpoint of `dforce train video`")
    few = FEW if cfg.fast_dev_run else {}
    frames, samples = (few.get(key, cfg[key]) for key in ("frames", "samples"))
    if min(frames, samples, cfg.save_every) < 1:
        raise ValueError(f"frames, samples and save_every are at least 1, got {frames}, {samples}, {cfg.save_every}")
    model = load_video(cfg.checkpoint, device=device_of(cfg.device), raw=cfg.raw, trust=cfg.trust)
    cfg = suited(cfg, model.config.get("recipe", {}), given=HydraConfig.get().overrides.task, unless=("method",))
    recipe = recipe_of(cfg, model)
    if cfg.serve:
        from dforce.video.server import serve

        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            serve(model, recipe, _real(cfg, model), port=int(cfg.serve), context=context_of(cfg, model), seed=cfg.seed,
                  fps=cfg.fps)
        return
    real = _real(cfg, model)
    start = real.clips(samples, context_of(cfg, model)) if real and context_of(cfg, model) else None
    actions = fed(cfg.actions, model, real, batch=samples, context=start, frames=frames, seed=cfg.seed,
                  file=folder.path / FILE, steps=few.get("feature_steps", cfg.feature_steps))
    shape = (samples, *model.shape[1:], model.shape[0])
    record = Record(folder.path, shape=shape, actions=model.actions, settings=settings(cfg, model, recipe, start),
                    resume=cfg.resume)
    beside = _beside(real, start, frames)
    with Film(folder.media / "rollout.mp4", fps=cfg.fps) if cfg.film else contextlib.nullcontext() as film:
        speed = roll(model, recipe, record, film, folder, start=start, beside=beside, actions=actions, frames=frames,
                     seed=cfg.seed, save_every=cfg.save_every)
    made = record.frames()[:frames]
    strip(np.asarray(made[:, :FILMED]), LOOKS, folder.media / "strip.png")
    write_atomic(folder.media / "captions.json", CAPTIONS)
    about = {"task": model.data or "video", "method": cfg.method}
    variant = variant_of(recipe) | ({"actions": "walker"} if isinstance(actions, Walker) else {})
    rows = [row(about, variant, "frames per second", speed, None, None, 1, unit="1/s", higher=True)] if speed else []
    if real is not None and cfg.measure:
        wanted = Wanted(few.get("window", cfg.window), cfg.features, few.get("feature_steps", cfg.feature_steps),
                        cfg.i3d, cfg.lpips, cfg.seed)
        rows += report(folder, model, real, made, record.actions_fed(), wanted=wanted, method=cfg.method,
                       variant=variant, start=start)
    folder.results(rows)
    print(markdown_table(rows) if rows else f"{len(made)} frames were there already, and nothing is measured")


CAPTIONS = """{"rollout.mp4": "Above: real video. Below: the rollouts, generated. They begin with the same frames \
where there is a context, and are told the same actions where actions=data.",
"strip.png": "Generated frames by their number; a row is a rollout.",
"drift.png": "Statistics of the frames over time, beside real video."}
"""


def variant_of(recipe: Recipe) -> dict[str, Any]:
    """What a row of results says of the recipe: the settings that its method reads."""
    common = {"steps": recipe.steps, "order": recipe.order, "clamp": recipe.clamp}
    if recipe.method == "sliding":
        return {**common, "chunk": recipe.chunk, "keep": recipe.keep}
    refresh = "none" if recipe.refresh is None else f"{recipe.refresh[0]}:{recipe.refresh[1]}"
    common |= {"stabilise_std": recipe.stabilise_std, "refresh": refresh}
    common |= {"mode": recipe.mode} if recipe.stabilise_std else {}
    return common | ({"history": recipe.history, "history_std": recipe.history_std} if recipe.history != 1 else {})


def recipe_of(cfg: Any, model: VideoModel) -> Recipe:
    """The recipe in a configuration. ValueError for one that the model cannot follow."""
    given = {key: cfg[key] for key in RECIPE}
    if model.latents is not None and cfg.clamp is not None:
        raise ValueError("this model makes latents, which have no largest size: give clamp=null")
    if cfg.refresh is not None:
        given["refresh"] = tuple(cfg.refresh)
    return Recipe(**given).checked(model.stack)


def settings(cfg: Any, model: VideoModel, recipe: Recipe, start: Clip | None) -> dict[str, Any]:
    """What decides the frames of a rollout: it is only gone on with if none of it has changed."""
    seal = hashlib.sha256((model.checkpoint / "MANIFEST.json").read_bytes()).hexdigest()[:16]
    began = None if start is None else hashlib.sha256(start.frames.numpy().tobytes()).hexdigest()[:16]
    return {**recipe._asdict(), "model": seal, "raw": cfg.raw, "context": began, "seed": cfg.seed,
            "actions": cfg.actions}


def context_of(cfg: Any, model: VideoModel) -> int:
    """Frames that rollouts begin with, in whole tokens."""
    frames = max(model.window // 2, model.stack) if cfg.context is None else cfg.context
    if frames < 0:
        raise ValueError(f"context is a number of frames >= 0, got {frames}")
    if cfg.context is not None and frames % model.stack:
        raise ValueError(f"context must fill whole tokens of {model.stack} frames, got {frames}")
    return frames // model.stack * model.stack


def _real(cfg: Any, model: VideoModel) -> RealVideo | None:
    """Real clips that the model has not seen, if anything asks for them."""
    alone = (model.checkpoint / FILE).is_file()  # a walker that came with the model needs no data to learn from
    learnt = (cfg.actions == "walker" and not alone) or (model.actions and cfg.actions == "data")
    told = not cfg.serve and (cfg.measure or learnt)  # served, keys are the actions
    wanted = told or context_of(cfg, model)
    data = cfg.data or model.data
    if not wanted and not cfg.data:
        return None
    if not data:
        raise ValueError("the checkpoint does not say what it learnt from: give data=, or go without "
                         "(measure=false context=0 actions=random)")
    return RealVideo(model, data, seed=cfg.seed)


def _beside(real: RealVideo | None, start: Clip | None, frames: int) -> np.ndarray | None:
    """Real frames to be shown beside the generated ones, uint8 [T, B, H, W, C]: what follows the context."""
    if real is None or start is None:
        return None
    before = start.frames.shape[1]
    whole, _ = real.whole(start.numbers)
    return to_uint8(whole[:FILMED, before:before + frames].transpose(0, 1)) if whole.shape[1] > before else None


def roll(model: VideoModel, recipe: Recipe, record: Record, film: Film | None, folder: RunFolder, *, start: Clip | None,
         beside: np.ndarray | None, actions: Actions | None, frames: int, seed: int, save_every: int) -> float | None:
    """Generates until `record` holds `frames` frames, from where it stands. Returns frames a second, all rollouts
    counted, None where there was nothing left to do."""
    batch, chunk = record.shape[0], recipe.chunk or model.stack
    context = torch.zeros(batch, 0, *model.shape) if start is None else start.frames
    state = record.state if record.chunks else begin(model, recipe, context, actions)
    before, done = context.shape[1], record.chunks * chunk
    if isinstance(actions, Walker) and done:
        actions.recall(record)
    for number, shown in enumerate(record.frames() if film else []):  # it cannot be appended to
        film.write(_picture(shown, beside, number))
    chunks = stream(model, recipe, state, batch=batch, actions=actions, context=before, noise=Noise(seed),
                    first=record.chunks)
    begun = last = time.monotonic()
    first = saved = done
    with Ticker(max(frames - done, 0), "rollout") as ticker:
        while done < frames:
            x, state = next(chunks)
            pixels = to_uint8(x)
            record.append(pixels, None if actions is None else actions(before + done, chunk))
            if isinstance(actions, Walker):
                actions.see(from_uint8(pixels))  # as the record will show it
            for t in range(chunk if film else 0):
                film.write(_picture(pixels[:, t], beside, done + t))
            done += chunk
            now = time.monotonic()
            ticker.advance(chunk, note=f"{batch * (done - first) / (now - begun):.1f} frames/s")
            if done - saved >= save_every or done >= frames:
                folder.log(done, **_numbers(x, state), frames_per_second=batch * (done - saved) / (now - last))
                record.save(state, chunks=done // chunk, frames=done)
                saved, last = done, now
    return batch * (done - first) / (time.monotonic() - begun) if done > first else None


def _numbers(x: Tensor, state: Any) -> dict[str, float]:
    """What is logged of a chunk: how bright and how different frames are, and how large the latent is."""
    found = {"brightness": float((x.mean() + 1) / 2), "contrast": float(x.std()),
             "outside": float((x.abs() > 1).float().mean())}
    carried = [leaf.float() for leaf in leaves(state) if leaf.is_floating_point() and leaf.numel()]
    return {**found, "latent_rms": float(torch.cat([c.flatten() for c in carried]).square().mean().sqrt())} \
        if carried else found


def _picture(pixels: np.ndarray, beside: np.ndarray | None, number: int) -> np.ndarray:
    """One frame of the film: real video above (its end comes round again), rollouts below. pixels: [B, H, W, C]."""
    rows = [enlarge(pixels[:FILMED])]
    if beside is not None:
        rows.insert(0, enlarge(beside[number % len(beside)]))
    return grid(np.stack(rows))
