"""A world model of video tuned towards a reward of images."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dforce.align import Query, Sampler
from dforce.align.algorithms.common import Setup
from dforce.align.monitor import Monitor, reward_measures
from dforce.align.on_policy import Ask
from dforce.align.rewards.protocol import Subject
from dforce.align.rewards.store import reward_of_frames
from dforce.align.tuning_run import PreparedTuning, TuningRun, checkpoint_store, resumed_state
from dforce.config import Node
from dforce.core.matrix import pyramid
from dforce.runs.checkpoint_defaults import no_checkpoint
from dforce.runs.folder import RunFolder
from dforce.train.checkpoint import load
from dforce.train.precision import device_of
from dforce.video.evaluation import MetricSettings
from dforce.video.film import need_film_writer
from dforce.video.model import AfterContext, VideoModel, continuation_cond, load_video
from dforce.video.reference_clips import RealVideo
from dforce.video.tuning_report import Contestants, TuningReport


@dataclass(frozen=True, kw_only=True)
class VideoTuning(TuningRun):
    """A run of `dforce align video`. The keys are explained in configs/verbs/align/video.yaml."""

    checkpoint: str | None
    raw: bool
    reward: str
    reward_node: Node | None
    reward_settings: Mapping[str, Any] | None
    data: str | None
    context: int | None
    frames: int
    steps: int
    delay: int | None
    spacing: Literal["index", "log_snr"]
    rollouts: int
    rollout_frames: int
    window: int
    feature_steps: int
    fps: float

    def prepare(self) -> PreparedTuning:
        """Model, reward and algorithm, or ValueError."""
        if not self.checkpoint:
            raise no_checkpoint("train video")
        device = device_of(self.device)
        base = load_video(self.checkpoint, device=device, raw=self.raw, trust=self.trust)
        self._check(base)
        model = base._replace(denoiser=AfterContext(copy.deepcopy(base.denoiser).requires_grad_(True)))
        self.adapted(model.denoiser)
        context, sampler = base.context_frames(self.context), self._sampler(model)
        rewards = reward_of_frames(self.reward_node or self.reward,
                                   Subject(base.shape, device=device, settings=self.reward_settings), trust=self.trust)
        train, held_out = (RealVideo(base, self.data or base.data, split=split, window=context + self.frames, seed=seed)
                           for split, seed in (("train", self.seed), ("val", self.eval_seed)))
        both = Contestants(base, model, sampler, AfterContext(base.denoiser), rewards, held_out, context,
                           lambda tokens: model.frames(tokens).clamp(-1, 1))
        aligning = self.algorithm.prepare(Setup(sampler, rewards.tuned, windows_query(train, context),
                                                 decode=both.decode, seed=self.seed, rows=self.rows))
        store = checkpoint_store(load(base.checkpoint, trust=self.trust),
                                 lambda config: {**base.config, "align": config})
        return PreparedTuning(aligning, self._monitor(both), store,
                              self.record(self.checkpoint, aligning, reward=rewards.name, context=context),
                              resumed_state(aligning, self.resume), both)

    def finish(self, prepared: PreparedTuning, folder: RunFolder) -> None:
        """Lets both models go on from the same frames in the same noise."""
        both: Contestants = prepared.data
        report = TuningReport({"algorithm": prepared.aligning.name, "reward": both.rewards.name}, self.frames,
                              self.evaluate, self.watch, self.rows, self.rollouts, self.rollout_frames,
                              MetricSettings(self.window, feature_steps=self.feature_steps, seed=self.eval_seed),
                              self.fps, self.eval_seed)
        report.write(both, folder)

    def _check(self, model: VideoModel) -> None:
        """ValueError for what this model cannot do."""
        if self.frames < 1 or self.frames % model.stack:
            raise ValueError(f"frames must fill whole tokens of {model.stack} frames, at least one, got {self.frames}")
        if not self.data and not model.data:
            raise ValueError("the checkpoint does not say what it learnt from: give data=")
        if self.evaluate and self.rollouts:  # before hours of tuning, not after
            need_film_writer("rollouts=0")
        if min(self.rollout_frames, self.window, self.feature_steps) < 1 or \
                min(self.watch, self.evaluate, self.rollouts) < 0:
            raise ValueError("rollout_frames, window and feature_steps must be >= 1, watch, evaluate and rollouts >= 0")

    def _sampler(self, model: VideoModel) -> Sampler:
        """How the model samples the frames after a context: first order, as policy gradients want it."""
        grid, tokens = model.schedule.grid(self.steps, self.spacing), self.frames // model.stack
        matrix = pyramid(grid, tokens, self.steps if self.delay is None else self.delay)
        return Sampler(model.denoiser, model.schedule, matrix, (tokens, *model.event), eta=self.eta,
                       min_std=self.min_std, rows=self.rows)

    def _monitor(self, both: Contestants) -> Monitor | None:
        """Looks at reward, held-out reward and motion of what follows held-out clips."""
        if not self.watch:
            return None

        def ask(count: int, _: torch.Generator) -> Query:
            clip = both.held_out.clips(count, both.context + self.frames)
            return Query([f"clip {i}" for i in clip.numbers],
                         continuation_cond(both.model, clip.frames, clip.actions, both.context))

        measures = reward_measures(both.rewards)
        if self.frames > 1:
            measures["change"] = lambda x, query: (x[:, 1:] - x[:, :-1]).abs().flatten(1).mean(1)
        return Monitor(both.sampler, both.reference, ask, measures, samples=min(self.watch, len(both.held_out)),
                       seed=self.eval_seed + 1, decode=both.decode)


def windows_query(real: RealVideo, context: int) -> Ask:
    """Asks for what follows windows of clips: their first `context` frames, and the actions of the others."""
    def ask(count: int, generator: torch.Generator) -> Query:
        first = int(torch.randint(2**30, (), generator=generator))
        parts = [real.windows(first)]
        while sum(len(frames) for frames, _ in parts) < count:
            parts.append(real.windows(first + len(parts)))
        frames = torch.cat([frames for frames, _ in parts])[:count]
        actions = [each for _, each in parts if each is not None]
        return Query([f"window {first}.{i}" for i in range(count)], continuation_cond(
            real.model, frames, torch.cat(actions)[:count] if actions else None, context))
    return ask
