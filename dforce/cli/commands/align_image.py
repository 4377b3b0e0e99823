"""`dforce align image`: an image model towards a reward, beside the model begun with and best of n of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from dforce.align import Query, Sampler, add_lowrank, dance, flow_sde
from dforce.align.algorithms import build
from dforce.align.loop import Aligning
from dforce.align.monitor import Measure, Watch
from dforce.align.on_policy import Ask
from dforce.align.rewards.protocol import Reward, ask_reward
from dforce.cli.commands.align import Saver, begun_with, carry_out, check_kl_max, settings_of, state_of, trainable
from dforce.cli.commands.sample_image import chosen_classes, judge_of
from dforce.config import nearest
from dforce.core.denoiser import Cond, Denoiser
from dforce.images.classifier import Classifier
from dforce.images.metrics import accuracy, diversity
from dforce.images.model import ImageModel, class_cond, guided_by_class, load_model
from dforce.images.rewards import Rewards, rewards_of
from dforce.images.tuning_report import Draws, judged
from dforce.runs.folder import RunFolder
from dforce.runs.training_run import Kind, Prepared, run_kind
from dforce.train.checkpoint import find, load
from dforce.train.fit import TrainingState

FOLDER = False      # as in `dforce train`: a run that is resumed goes on in the folder it has
RULES: dict[str, Callable[..., Any]] = {"flow": flow_sde, "dance": dance}


class Session(NamedTuple):
    """A tuning run of images, ready to begin. base: the model as it was. sampler: how what is tuned is judged."""

    aligning: Aligning
    base: ImageModel
    sampler: Sampler
    reference: Denoiser
    rewards: Rewards
    judge: Classifier | None
    classes: list[int]
    state: TrainingState | None


def run(cfg: Any, _: None = None) -> None:
    """Tunes as cfg says; checkpoints, metrics, results, pictures and the page go into the run folder."""
    run_kind(KIND, cfg)


def prepare(cfg: Any) -> Prepared:
    """Model, reward and algorithm of cfg, or ValueError."""
    device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    cfg.device = str(device)
    base = load_model(cfg.checkpoint, trust=cfg.trust)
    base.denoiser.to(device).requires_grad_(False)
    model = base._replace(denoiser=copy.deepcopy(base.denoiser).requires_grad_(True))
    if cfg.lowrank is not None:
        add_lowrank(model.denoiser, rank=cfg.lowrank, generator=torch.Generator().manual_seed(cfg.seed))
    classes = chosen_classes(cfg.classes, model.classes)
    judge = judge_of(cfg.classifier, {"base": base})
    rewards = rewards_of(cfg, base, judge.to(device) if judge is not None else None)
    sampler = sampler_of(cfg, model, cfg.steps)
    aligning = build(cfg.algorithm, sampler_of(cfg, model, cfg.tune_steps or cfg.steps), rewards.tuned,
                     ask_for(classes), settings=settings_of(cfg), prompts=_prompts, seed=cfg.seed, rows=cfg.rows)
    state = state_of(cfg, aligning)
    check_kl_max(cfg, sampler)
    session = Session(aligning, base, sampler, guided_by_class(base, cfg.guidance), rewards, judge, classes, state)
    about = {"config": begun_with(load(find(cfg.checkpoint), trust=cfg.trust).config,
                                  dict(OmegaConf.to_container(cfg, resolve=True)))}  # type: ignore[arg-type]
    return Prepared(iter(()), about, state.step if state else 0, aligning.steps, session)


def work(prepared: Prepared, cfg: Any, folder: RunFolder) -> None:
    """Tunes, then draws from both models in the same noise."""
    session: Session = prepared.data
    bundle = load(find(cfg.checkpoint), trust=cfg.trust)
    record = {"base": str(cfg.checkpoint), "algorithm": cfg.algorithm, "reward": session.rewards.name,
              "classes": [session.base.classes[number] for number in session.classes],
              "settings": session.aligning.settings, "lowrank": cfg.lowrank,
              "learning": trainable(session.aligning.objective)}
    saver = Saver(folder, cfg.keep_last, prepared.about["config"], bundle.layout, bundle.normalizer, record)
    carry_out(session.aligning, cfg, folder, saver, watch_of(session, cfg), state=session.state)
    if folder.writes and cfg.evaluate:
        judged(draws_of(session), cfg, folder)


def sampler_of(cfg: Any, model: ImageModel, steps: int) -> Sampler:
    """How the model samples in so many steps, first order as policy gradients want it, guidance inside."""
    if cfg.sde is not None and cfg.sde not in RULES:
        raise ValueError(f"no sde {cfg.sde!r}{nearest(cfg.sde, RULES)}")
    rule = None if cfg.sde is None else RULES[cfg.sde](model.schedule)
    matrix = model.schedule.grid(steps, cfg.spacing)[:, None]
    return Sampler(guided_by_class(model, cfg.guidance), model.schedule, matrix, (1, *model.shape),
                   eta=cfg.eta if rule is None else 0.0, std=rule, min_std=cfg.min_std, rows=cfg.rows)


def ask_for(classes: list[int]) -> Ask:
    """As many images of every one of the classes as goes, in a random order."""
    def ask(count: int, generator: torch.Generator) -> Query:
        labels = torch.tensor(classes).repeat(-(-count // len(classes)))[:count]
        labels = labels[torch.randperm(count, generator=generator)]
        return Query(labels.tolist(), class_cond(labels))
    return ask


def _prompts(cond: Cond | None, count: int) -> list[int]:
    return (cond or {})["static"]["class"].tolist()


def watch_of(session: Session, cfg: Any) -> Watch | None:
    """Looks at reward, held-out reward, class accuracy and diversity, of classes that are tuned on."""
    if not cfg.watch:
        return None
    rewards, judge = session.rewards, session.judge

    def asked(reward: Reward) -> Measure:
        return lambda x, query: ask_reward(reward, x, query.prompts, where="the watch")

    measures = {"reward": asked(rewards.tuned)}
    measures |= {name: asked(part) for name, part in rewards.parts.items()}
    if rewards.held_out is not None:
        measures["held_out"] = asked(rewards.held_out)
    if judge is not None:
        measures["class_accuracy"] = lambda x, query: accuracy(judge, x, _labels(query).to(x.device))
    count = 2 * len(session.classes) if cfg.fast_dev_run else cfg.watch
    if count > len(session.classes):
        measures["diversity"] = lambda x, query: diversity(x.clamp(-1, 1).cpu(), _labels(query))
    return Watch(session.sampler, session.reference, ask_for(session.classes), measures, samples=count,
                 seed=cfg.eval_seed + 1)


def _labels(query: Query) -> Tensor:
    return torch.tensor(list(query.prompts))


def draws_of(session: Session) -> Draws:
    """What is drawn and judged at the end: classes tuned on, and those never tuned on, where there are such."""
    return Draws(session.sampler, session.reference, session.rewards, session.judge, session.base, session.classes)


KIND = Kind("align/image", frozenset({"checkpoint", "algorithm", "reward", "steps"}), prepare, work,
            lambda folder: f"open {folder / 'index.html'}; draw more with: dforce sample image checkpoint={folder}",
            "epochs")
