"""`dforce align video`: a world model of video towards a reward of images, beside the model begun with."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from dforce.align import Query, Sampler, add_lowrank
from dforce.align.algorithms import build
from dforce.align.loop import Aligning
from dforce.align.monitor import Measure, Watch
from dforce.align.on_policy import Ask
from dforce.align.rewards.protocol import ask_reward
from dforce.cli.commands.align import Saver, carry_out, check_kl_max, settings_of, state_of, trainable
from dforce.cli.commands.rollout import context_of
from dforce.core.matrix import pyramid
from dforce.images.rewards import lifted
from dforce.runs.folder import RunFolder
from dforce.runs.training_run import Kind, Prepared, run_kind
from dforce.train.checkpoint import load
from dforce.train.fit import TrainingState
from dforce.train.precision import device_of
from dforce.video.context import AfterContext, asked
from dforce.video.model import VideoModel, load_video
from dforce.video.reference_clips import RealVideo
from dforce.video.tuning_report import Both, report

FOLDER = False   # as in `dforce train`: a run that is resumed goes on in the folder it has
USUAL = {"epochs": 20, "samples": 128, "group": 8, "advantage": "group", "updates": 4}  # for video
OWN: dict[str, dict[str, Any]] = {"grpo": {"kl": 0.02}, "sft": {"samples": 1024, "advantage": "batch"}}  # no groups
FEW = {"watch": 8, "evaluate": 6, "rollouts": 2, "rollout_frames": 12, "window": 4, "feature_steps": 5}  # fast_dev_run


class Session(NamedTuple):
    """A tuning run of video, ready to begin. state: what a resumed one goes on from."""

    aligning: Aligning
    both: Both
    state: TrainingState | None


def run(cfg: Any, _: None = None) -> None:
    """Tunes as cfg says; checkpoints, metrics, results, film and the page go into the run folder."""
    run_kind(KIND, cfg)


def prepare(cfg: Any) -> Prepared:
    """Model, reward and algorithm of cfg, or ValueError."""
    if not cfg.checkpoint:
        raise ValueError("checkpoint is needed: a run folder or a checkpoint of `dforce train video`")
    cfg.device = str(device_of(cfg.device))
    base = load_video(cfg.checkpoint, device=cfg.device, raw=cfg.raw, trust=cfg.trust)
    _check(cfg, base)
    model = base._replace(denoiser=AfterContext(copy.deepcopy(base.denoiser).requires_grad_(True)))
    if cfg.lowrank is not None:
        add_lowrank(model.denoiser, rank=cfg.lowrank, generator=torch.Generator().manual_seed(cfg.seed))
    sampler, context = sampler_of(cfg, model), context_of(cfg, base)
    check_kl_max(cfg, sampler)
    rewards = lifted(cfg.reward_node or cfg.reward, max(base.shape[1:]), trust=cfg.trust)
    clips = {split: RealVideo(base, cfg.data or base.data, split=split, window=context + cfg.frames,
                              seed=cfg.seed if split == "train" else cfg.eval_seed) for split in ("train", "val")}
    settings = settings_of(cfg, {**USUAL, **OWN.get(cfg.algorithm, {})})
    both = Both(base, model, sampler, AfterContext(base.denoiser), rewards, clips["val"], context, on_screen(model))
    aligning = build(cfg.algorithm, sampler, rewards.tuned, ask_for(clips["train"], context),
                     settings=settings, decode=both.decode, seed=cfg.seed, rows=cfg.rows)
    state = state_of(cfg, aligning)
    about = {"config": {**base.config, "align": OmegaConf.to_container(cfg, resolve=True)}}
    return Prepared(iter(()), about, state.step if state else 0, aligning.steps,
                    Session(aligning, both, state))


def _check(cfg: Any, model: VideoModel) -> None:
    """ValueError for what this model cannot do."""
    if cfg.frames < 1 or cfg.frames % model.stack:
        raise ValueError(f"frames must fill whole tokens of {model.stack} frames, at least one, got {cfg.frames}")
    if not cfg.data and not model.data:
        raise ValueError("the checkpoint does not say what it learnt from: give data=")
    if cfg.evaluate and cfg.rollouts and find_spec("av") is None:  # known before hours of tuning, not after
        raise ValueError("the film of rollouts needs the package av (pip install av); or go without, rollouts=0")
    if min(cfg.rollout_frames, cfg.window, cfg.feature_steps) < 1 or min(cfg.watch, cfg.evaluate, cfg.rollouts) < 0:
        raise ValueError("rollout_frames, window and feature_steps must be >= 1, watch, evaluate and rollouts >= 0")


def work(prepared: Prepared, cfg: Any, folder: RunFolder) -> None:
    """Tunes, then lets both models go on from the same frames in the same noise."""
    own: Session = prepared.data
    both = own.both
    few = {key: min(value, cfg[key]) for key, value in FEW.items()} if cfg.fast_dev_run else {}
    bundle = load(both.base.checkpoint, trust=cfg.trust)
    record = {"base": str(cfg.checkpoint), "algorithm": cfg.algorithm, "reward": both.rewards.name,
              "settings": own.aligning.settings, "lowrank": cfg.lowrank, "context": both.context,
              "learning": trainable(own.aligning.objective)}
    saver = Saver(folder, cfg.keep_last, prepared.about["config"], bundle.layout, bundle.normalizer, record)
    carry_out(own.aligning, cfg, folder, saver, watch_of(both, few.get("watch", cfg.watch), cfg), state=own.state)
    if folder.writes and cfg.evaluate:
        report(both, OmegaConf.merge(cfg, few), folder)


def sampler_of(cfg: Any, model: VideoModel) -> Sampler:
    """How the model samples the frames after a context: first order, as policy gradients want it."""
    grid, tokens = model.schedule.grid(cfg.steps, cfg.spacing), cfg.frames // model.stack
    matrix = pyramid(grid, tokens, cfg.steps if cfg.delay is None else cfg.delay)
    return Sampler(model.denoiser, model.schedule, matrix, (tokens, *model.event), eta=cfg.eta, min_std=cfg.min_std,
                   rows=cfg.rows)


def on_screen(model: VideoModel) -> Any:
    """Tokens [B, T, *event] -> frames [B, T * stack, C, H, W] as a screen has them."""
    return lambda tokens: model.frames(tokens).clamp(-1, 1)


def ask_for(real: RealVideo, context: int) -> Ask:
    """Windows of training clips: their first `context` frames, and the actions of the others."""
    def ask(count: int, generator: torch.Generator) -> Query:
        first = int(torch.randint(2**30, (), generator=generator))
        frames, actions = _rows(real, first, count)
        return Query([f"window {first}.{i}" for i in range(count)], asked(real.model, frames, actions, context))
    return ask


def _rows(real: RealVideo, first: int, count: int) -> tuple[Tensor, Tensor | None]:
    """`count` windows, from those of step `first` on."""
    parts = [real.windows(first)]
    while sum(len(frames) for frames, _ in parts) < count:
        parts.append(real.windows(first + len(parts)))
    told = [actions for _, actions in parts if actions is not None]
    return torch.cat([frames for frames, _ in parts])[:count], torch.cat(told)[:count] if told else None


def watch_of(own: Both, count: int, cfg: Any) -> Watch | None:
    """Looks at reward, held-out reward and motion of what follows held-out clips."""
    if not count:
        return None

    def held_out(number: int, _: torch.Generator) -> Query:
        clip = own.held_out.clips(number, own.context + cfg.frames)
        return Query([f"clip {i}" for i in clip.numbers], asked(own.model, clip.frames, clip.actions, own.context))

    measures: dict[str, Measure] = {
        "reward": lambda x, query: ask_reward(own.rewards.tuned, x, query.prompts, where="the watch")}
    if own.rewards.held_out is not None:
        other = own.rewards.held_out
        measures["held_out"] = lambda x, query: ask_reward(other, x, query.prompts, where="the watch")
    if cfg.frames > 1:
        measures["change"] = lambda x, query: (x[:, 1:] - x[:, :-1]).abs().flatten(1).mean(1)
    return Watch(own.sampler, own.reference, held_out, measures, samples=min(count, len(own.held_out)),
                 seed=cfg.eval_seed + 1, decode=own.decode)


KIND = Kind("align/video", frozenset({"checkpoint", "algorithm", "reward", "rollouts"}), prepare, work,
            lambda folder: f"open {folder / 'index.html'}; roll it out with: dforce rollout checkpoint={folder}",
            "epochs", within="align")
