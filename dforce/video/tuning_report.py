"""What a world model has gained and lost by tuning: videos and rollouts of it and of the model begun with, alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.align import Sampler
from dforce.align.monitor import divergence, has_density
from dforce.align.rewards.protocol import ask_reward
from dforce.align.rewards.store import Rewards
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise
from dforce.core.tree import map_state, select
from dforce.data.pixels import to_uint8
from dforce.guidance.reporting import share_of
from dforce.report.rows import Row, difference_row
from dforce.report.terminal import terminal_table
from dforce.runs.folder import RunFolder
from dforce.runs.progress import Advance, bar
from dforce.video.evaluation import MetricSettings, rollout_rows, yardstick
from dforce.video.film import FILMED, LOOKS, Film, enlarge, grid, strip
from dforce.video.metrics.drift import statistics
from dforce.video.metrics.measure import RowMaker, picture
from dforce.video.model import VideoModel, continuation_cond
from dforce.video.reference_clips import RealVideo, ReferenceClips, rollout_actions
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


class Contestants(NamedTuple):
    """The models that are compared."""

    base: VideoModel
    model: VideoModel
    sampler: Sampler  # of the tuned `model`
    reference: Denoiser  # `base`, as `sampler` takes it
    rewards: Rewards
    held_out: RealVideo  # real clips, of which the first `context` frames are what both go on from
    context: int
    decode: Callable[[Tensor], Tensor]  # tokens [B, T, *event] -> frames [B, T * stack, C, H, W] in -1..1


@dataclass(frozen=True)
class TuningReport:
    """How both models are compared at the end of a tuning run."""

    variant: Mapping[str, Any]  # algorithm and reward, as rows name them
    frames: int  # of a short video
    evaluate: int  # contexts of those
    skip: int  # held-out clips before them, which were looked at on the way
    rows: int | None  # videos at a time
    rollouts: int  # long ones, of rollout_frames frames
    rollout_frames: int
    metrics: MetricSettings  # how their drift is measured
    fps: float  # of their film
    seed: int  # of contexts and noise

    def write(self, both: Contestants, folder: RunFolder) -> None:
        """results.json, episodes.jsonl, film, pictures and the table."""
        (folder.path / "episodes.jsonl").unlink(missing_ok=True)  # of the run before it was resumed
        with bar("judge") as advance:
            rows = self._short(both, folder, advance)
        if self.rollouts:
            with bar("roll out") as advance:
                rows += self._long(both, folder, advance)
        folder.results([row for row in rows if row["value"] is not None])
        folder.captions({name: text for name, text in CAPTIONS.items() if (folder.media / name).is_file()})
        print(terminal_table([row for row in rows if row["metric"] in (*SHOWN, "reward_difference")
                              and row["variant"]["sampling"] == "policy"]))
        print(terminal_table([row for row in rows
                              if row["metric"] in ("frechet", "brightness / real", "change / real")]))

    def _short(self, both: Contestants, folder: RunFolder, advance: Advance) -> list[Row]:
        """Rows of the reward and its price on videos as they are tuned on, after clips that nobody has seen."""
        count = min(self.evaluate, len(both.held_out))
        clip = both.held_out.clips(count, both.context + self.frames, skip=self.skip)
        device = both.sampler.schedule.alpha.device
        every = torch.arange(count, device=device).repeat_interleave(DRAWS)
        known = continuation_cond(both.model, clip.frames, clip.actions, both.context)
        cond: Cond = select(map_state(lambda leaf: leaf.to(device), known), every)
        noise, after = Noise(self.seed), both.sampler._replace(advance=share_of(advance, 1 / 3))
        made = {name: both.decode(sampler.tokens(len(every), cond, noise))
                for name, sampler in (("base", after._replace(denoiser=both.reference)), ("tuned", after))}
        values = {name: video_values(both.rewards, frames, clip.numbers) for name, frames in made.items()}
        if has_density(both.sampler):
            _, nats = divergence(after, both.reference, len(every), cond, noise, rows=self.rows)
            values["tuned"]["kl"] = nats.view(count, DRAWS).mean(1).cpu()
        values["real video"] = video_values(both.rewards, clip.frames[:, both.context:], clip.numbers)
        folder.episodes({"task": both.held_out.data, "method": name, "sampling": "policy", "clip": number,
                         **{metric: float(value[i]) for metric, value in metrics.items()}}
                        for name, metrics in values.items() for i, number in enumerate(clip.numbers))
        _before_after(clip, made, both.context, folder)
        variant = {**self.variant, "sampling": "policy", "frames": f"0-{self.frames}"}
        return comparison_rows(values, both.held_out.data, variant, self.seed)

    def _long(self, both: Contestants, folder: RunFolder, advance: Advance) -> list[Row]:
        """Rows of drift of both models' rollouts, sampled as `dforce rollout` does; the film of them side by side."""
        recipe = Recipe(clamp=None if both.base.latents is not None else Recipe().clamp)
        batch, frames = self.rollouts, self.rollout_frames
        start = both.held_out.clips(batch, both.context, skip=self.skip) if both.context else None
        actions = rollout_actions("data", both.base, both.held_out, batch=batch, context=start, frames=frames,
                                  seed=self.seed)
        context = torch.zeros(batch, 0, *both.base.shape) if start is None else start.frames
        one = share_of(advance, 0.2)
        made = {name: to_uint8(continued(model, recipe, context, frames, actions=actions, noise=Noise(self.seed),
                                         advance=one).transpose(0, 1))
                for name, model in (("base", both.base), ("tuned", both.model))}
        fed = None if actions is None else actions(both.context, frames).transpose(0, 1).numpy()
        yard = yardstick(both.base, both.held_out, frames, self.metrics, share_of(advance, 0.2))
        rows: list[Row] = []
        for name, each in made.items():
            maker = RowMaker(both.held_out.data, name, {**self.variant, "sampling": "rollout"})
            measured, drift = rollout_rows(yard, each, fed, maker, start=start, advance=share_of(advance, 0.15))
            rows += [row for row in measured if row not in rows]  # real video beside both is the same
            picture(drift.drift, yard.of, folder.media / f"drift_{name}.png", f"drift: {name}")
            folder.episodes(drift.samples)
        _film(made, self.fps, folder, share_of(advance, 0.1))
        return rows


def video_values(rewards: Rewards, frames: Tensor, clips: list[int]) -> dict[str, Tensor]:
    """Of videos [clips * n, T, C, H, W], n in a row of one clip: name -> [clips], the mean over the n."""
    draws = len(frames) // len(clips)
    prompts = [f"clip {i}" for i in clips for _ in range(draws)]
    values = {"reward": ask_reward(rewards.tuned, frames, prompts, where="the report")}
    if rewards.held_out is not None:
        values["held_out_reward"] = ask_reward(rewards.held_out, frames, prompts, where="the report")
    looks = statistics(frames.cpu())
    values |= {name: looks[name].nanmean(1) for name in ("brightness", "contrast", "change")
               if frames.shape[1] > 1 or name != "change"}
    means = {name: value.cpu().double().view(-1, draws).mean(1) for name, value in values.items()}
    if draws > 1:
        pairs = frames.cpu().double().unflatten(0, (-1, draws))
        means["diversity"] = (pairs[:, 0] - pairs[:, 1]).square().flatten(2).sum(2).mean(1)
    return means


def comparison_rows(values: dict[str, dict[str, Tensor]], task: str, variant: dict[str, Any], seed: int) -> list[Row]:
    """A row of every metric of every set, and the differences of the tuned model to the base, paired by clip."""
    rows = [RowMaker(task, name, variant).mean(metric, value, seed=seed, unit=UNITS.get(metric, ""),
                                              higher=True if "reward" in metric else None)
            for name, metrics in values.items() for metric, value in metrics.items()]
    return rows + [difference_row(task, "tuned - base", metric, values["tuned"][metric].numpy(), value.numpy(),
                                  variant=variant, unit="paired by clip and noise",
                                  higher=True if "reward" in metric else None)
                   for metric, value in values["base"].items()]


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


def _film(made: dict[str, np.ndarray], fps: float, folder: RunFolder, advance: Advance) -> None:
    """media/rollout.mp4, the base above the tuned model, and media/rollouts.png; made: uint8 [T, B, H, W, C]."""
    with Film(folder.media / "rollout.mp4", fps=fps) as film:
        for frames in zip(*made.values(), strict=True):
            film.write(grid(np.stack([enlarge(each[:FILMED]) for each in frames])))
            advance(1 / len(made["base"]))
    some = np.stack([frames[:, :PICTURED] for frames in made.values()], 2)
    strip(some.reshape(len(some), -1, *some.shape[3:]), LOOKS, folder.media / "rollouts.png",
          labels=[f"{name} {i}" for i in range(some.shape[1]) for name in made], side=48)
