"""What a world model has gained and lost by tuning: short videos and long rollouts of it and of the model begun with,
from the same frames and in the same noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.align import Sampler
from dforce.align.monitor import divergence, has_density
from dforce.align.rewards.protocol import ask_reward
from dforce.cli.commands.rollout import FILMED, LOOKS
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise
from dforce.core.tree import map_state, select
from dforce.data.pixels import to_uint8
from dforce.images.rewards import Rewards
from dforce.report.statistics import paired_difference
from dforce.report.table import markdown_table
from dforce.runs.folder import RunFolder, write_atomic
from dforce.video.context import asked
from dforce.video.evaluation import Wanted, rollout_rows, yardstick
from dforce.video.film import Film, enlarge, grid, strip
from dforce.video.metrics.drift import statistics
from dforce.video.metrics.measure import Row, mean_row, picture, row
from dforce.video.model import VideoModel
from dforce.video.reference_clips import RealVideo, ReferenceClips, fed
from dforce.video.stream import Recipe, continued

DRAWS = 2        # videos from each context: how they differ is the diversity
PICTURED = 3     # contexts, and rollouts, in a picture
UNITS = {"kl": "nats of a video, to the base", "diversity": "squared distance of two videos of a context, a frame",
         "brightness": "0 black, 1 white", "contrast": "std of pixels", "change": "mean |difference| of frames"}
SHOWN = ("reward", "held_out_reward", "kl", "diversity", "change")
CAPTIONS = {
    "before_after.png": "What follows the same held-out frames: really, and by both models in the same noise. The "
                        "first two frames of each row are real.",
    "rollout.mp4": "Above: the model begun with. Below: the tuned one. The same first frames, actions and noise.",
    "rollouts.png": "The same long rollouts, frames by their number.",
    "drift_base.png": "Long rollouts of the model begun with, beside real video.",
    "drift_tuned.png": "Long rollouts of the tuned model, beside real video.",
    "watch.png": "What became of the policy on held-out contexts, with 95% intervals; dashed: the model begun with."}


class Both(NamedTuple):
    """The models that are compared. sampler: of the tuned `model`; reference: `base`, as `sampler` takes it; context:
    frames of `held_out` that both go on from; decode: tokens to frames on a screen."""

    base: VideoModel
    model: VideoModel
    sampler: Sampler
    reference: Denoiser
    rewards: Rewards
    held_out: RealVideo
    context: int
    decode: Callable[[Tensor], Tensor]


def report(own: Both, cfg: Any, folder: RunFolder) -> None:
    """results.json, episodes.jsonl, film, pictures and the table. Of cfg: evaluate, rollouts and what belongs to them,
    watch (clips that were looked at on the way are passed over), eval_seed."""
    (folder.path / "episodes.jsonl").unlink(missing_ok=True)  # of the run before it was resumed
    variant = {"algorithm": cfg.algorithm, "reward": own.rewards.name}
    rows = short(own, cfg, folder, {**variant, "sampling": "policy", "frames": f"0-{cfg.frames}"})
    if cfg.rollouts:
        rows += long(own, cfg, folder, {**variant, "sampling": "rollout"})
    folder.results([one for one in rows if one["value"] is not None])
    there = {name: text for name, text in CAPTIONS.items() if (folder.media / name).is_file()}
    write_atomic(folder.media / "captions.json", json.dumps(there, indent=1) + "\n")
    print(markdown_table([one for one in rows if one["metric"] in (*SHOWN, "reward_difference")
                          and one["variant"]["sampling"] == "policy"]))
    print(markdown_table([one for one in rows if one["metric"] in ("frechet", "brightness / real", "change / real")]))


# ------------------------------------------------------------------------------------------- what is tuned on, held out

def short(own: Both, cfg: Any, folder: RunFolder, variant: dict[str, Any]) -> list[Row]:
    """Rows of the reward and its price on videos as they are tuned on, after clips that nobody has seen."""
    count = min(cfg.evaluate, len(own.held_out))
    clip = own.held_out.clips(count, own.context + cfg.frames, skip=cfg.watch)
    device = own.sampler.schedule.alpha.device
    every = torch.arange(count, device=device).repeat_interleave(DRAWS)
    cond: Cond = select(map_state(lambda leaf: leaf.to(device), asked(own.model, clip.frames, clip.actions,
                                                                      own.context)), every)
    noise, before = Noise(cfg.eval_seed), own.sampler._replace(denoiser=own.reference)
    made = {name: own.decode(sampler.tokens(len(every), cond, noise))
            for name, sampler in (("base", before), ("tuned", own.sampler))}
    found = {name: measured(own.rewards, frames, clip.numbers) for name, frames in made.items()}
    if has_density(own.sampler):
        _, nats = divergence(own.sampler, own.reference, len(every), cond, noise, rows=cfg.rows)
        found["tuned"]["kl"] = nats.view(count, DRAWS).mean(1).cpu()
    real = clip.frames[:, own.context:]
    found["real video"] = measured(own.rewards, real, clip.numbers)
    folder.episodes({"task": own.held_out.data, "method": name, "sampling": variant["sampling"], "clip": number,
                     **{metric: float(value[i]) for metric, value in values.items()}}
                    for name, values in found.items() for i, number in enumerate(clip.numbers))
    _before_after(clip, made, own.context, folder)
    return compared(found, own.held_out.data, variant, cfg.eval_seed)


def measured(rewards: Rewards, frames: Tensor, clips: list[int]) -> dict[str, Tensor]:
    """Of videos [clips * n, T, C, H, W], n in a row of one clip: name -> [clips], the mean over the n."""
    draws = len(frames) // len(clips)
    prompts = [f"clip {i}" for i in clips for _ in range(draws)]
    found = {"reward": ask_reward(rewards.tuned, frames, prompts, where="the report")}
    if rewards.held_out is not None:
        found["held_out_reward"] = ask_reward(rewards.held_out, frames, prompts, where="the report")
    told = statistics(frames.cpu())
    found |= {name: told[name].nanmean(1) for name in ("brightness", "contrast", "change") if frames.shape[1] > 1
              or name != "change"}
    pairs = frames.cpu().double().unflatten(0, (-1, draws))
    values = {name: value.cpu().double().view(-1, draws).mean(1) for name, value in found.items()}
    if draws > 1:
        values["diversity"] = (pairs[:, 0] - pairs[:, 1]).square().flatten(2).sum(2).mean(1)
    return values


def compared(found: dict[str, dict[str, Tensor]], task: str, variant: dict[str, Any], seed: int) -> list[Row]:
    """A row of every metric of every set, and the differences of the tuned model to the base, paired by clip."""
    rows = []
    for name, values in found.items():
        rows += [mean_row({"task": task, "method": name}, variant, metric, value, seed, UNITS.get(metric, ""),
                          True if "reward" in metric else None) for metric, value in values.items()]
    for metric, value in found["base"].items():
        gap = paired_difference(found["tuned"][metric].numpy(), value.numpy())
        rows.append(row({"task": task, "method": "tuned - base"}, variant, f"{metric}_difference", *gap,
                        unit="paired by clip and noise", higher=True if "reward" in metric else None))
    return rows


# ------------------------------------------------------------------------------------------------------------- drift

def long(own: Both, cfg: Any, folder: RunFolder, variant: dict[str, Any]) -> list[Row]:
    """Rows of drift of both models' rollouts, sampled as `dforce rollout` does; the film of them side by side."""
    recipe = Recipe(clamp=None if own.base.latents is not None else Recipe().clamp)
    batch, frames = cfg.rollouts, cfg.rollout_frames
    start = own.held_out.clips(batch, own.context, skip=cfg.watch) if own.context else None
    actions = fed("data", own.base, own.held_out, batch=batch, context=start, frames=frames, seed=cfg.eval_seed)
    context = torch.zeros(batch, 0, *own.base.shape) if start is None else start.frames
    made = {name: to_uint8(continued(model, recipe, context, frames, actions=actions, noise=Noise(cfg.eval_seed))
                           .transpose(0, 1)) for name, model in (("base", own.base), ("tuned", own.model))}
    told = None if actions is None else actions(own.context, frames).transpose(0, 1).numpy()
    yard = yardstick(own.base, own.held_out, frames, Wanted(cfg.window, steps=cfg.feature_steps, seed=cfg.eval_seed))
    rows: list[Row] = []
    for name, each in made.items():
        found, seen = rollout_rows(yard, each, told, method=name, variant=variant, start=start)
        rows += [one for one in found if one not in rows]  # real video beside both is the same
        picture(seen.drift, yard.of, folder.media / f"drift_{name}.png", f"drift: {name}")
        folder.episodes(seen.samples)
    _film(made, cfg.fps, folder)
    return rows


# ---------------------------------------------------------------------------------------------------------- pictures

def _before_after(clip: ReferenceClips, made: dict[str, Tensor], context: int, folder: RunFolder) -> None:
    """media/before_after.png: contexts, and what follows: really, by the base, by the tuned model."""
    known = clip.frames[:PICTURED, :context]
    after = {"real": clip.frames[:PICTURED, context:],
             **{name: frames.cpu()[::DRAWS][:PICTURED] for name, frames in made.items()}}
    rows = torch.stack([torch.cat([known, each], 1) for each in after.values()], 1).flatten(0, 1)
    first = max(0, context - 2)
    labels = [f"{name} {i}" for i in clip.numbers[:PICTURED] for name in after]
    strip(to_uint8(rows[:, first:].transpose(0, 1)), range(rows.shape[1] - first), folder.media / "before_after.png",
          labels=labels, side=48)


def _film(made: dict[str, np.ndarray], fps: float, folder: RunFolder) -> None:
    """media/rollout.mp4, the base above the tuned model, and media/rollouts.png; made: uint8 [T, B, H, W, C]."""
    with Film(folder.media / "rollout.mp4", fps=fps) as film:
        for frames in zip(*made.values(), strict=True):
            film.write(grid(np.stack([enlarge(each[:FILMED]) for each in frames])))
    some = np.stack([frames[:, :PICTURED] for frames in made.values()], 2)
    strip(some.reshape(len(some), -1, *some.shape[3:]), LOOKS, folder.media / "rollouts.png",
          labels=[f"{name} {i}" for i in range(some.shape[1]) for name in made], side=48)
