"""The report of a rollout: all that can be measured about it, into its run folder."""

import json
from functools import partial
from typing import NamedTuple

import numpy as np
from torch import Tensor

from dforce.guidance.reporting import share_of
from dforce.report.rows import Row
from dforce.runs.folder import RunFolder, write_atomic
from dforce.runs.progress import Advance, no_advance, telling
from dforce.video.copying import copying_rows
from dforce.video.metrics.drift import Reference, reference
from dforce.video.metrics.features import PairEncoder, load_features, save_features, train_features, train_probe
from dforce.video.metrics.measure import DriftReport, RowMaker, measure_drift, picture, probe_rows
from dforce.video.model import VideoModel
from dforce.video.reference_clips import RealVideo, ReferenceClips
from dforce.video.truth import ball_rows, fvd_rows, memory_rows, position_rows, truth_rows

CLIPS = 32           # real clips on either side of a distance
STRETCH = 100        # frames of each


class MetricSettings(NamedTuple):
    """How a rollout is measured. i3d, lpips: paths of published weights."""

    window: int = 50  # frames of the windows of drift
    features: str | None = None  # a file of features; None trains them, for feature_steps steps
    feature_steps: int = 600  # training steps of the features and of the probe
    i3d: str | None = None
    lpips: tuple[str, ...] | None = None
    seed: int = 0


class Yardstick(NamedTuple):
    """What rollouts of a model are held against. learnt, real: clips that the model has seen, and has not."""

    model: VideoModel
    learnt: RealVideo
    real: RealVideo
    of: Reference  # both, as far as drift is measured
    settings: MetricSettings


def yardstick(model: VideoModel, real: RealVideo, frames: int, settings: MetricSettings,
              advance: Advance = no_advance) -> Yardstick:
    """For rollouts of so many frames; trains the features, unless the settings name a file.

    advance: told the shares of the training as they are done, 1 in all.
    """
    learnt = RealVideo(model, real.data, split="train", seed=settings.seed)
    window = min(settings.window, frames, learnt.shortest, real.shortest)
    near, far = (each.stretches(CLIPS, max(window, min(STRETCH, each.shortest))).frames for each in (learnt, real))
    of = reference(measuring_features(settings, learnt, advance), near, far, window=window)
    return Yardstick(model, learnt, real, of, settings)


def evaluate_rollout(folder: RunFolder, yard: Yardstick, made: np.ndarray, fed: np.ndarray | None, maker: RowMaker, *,
                     start: ReferenceClips | None, advance: Advance = no_advance) -> list[Row]:
    """Rows about the frames `made`, uint8 [T, B, H, W, C]; lines go into episodes.jsonl, a picture into media/, the
    curves of all windows into curves.json ({statistic: [B, n]}), the features into features.safetensors.

    fed: the actions [T, B, A]. start: the real clips that the rollouts began with.
    """
    save_features(yard.of.encoder, folder.path / "features.safetensors")
    rows, measured = rollout_rows(yard, made, fed, maker, start=start, advance=advance)
    picture(measured.drift, yard.of, folder.media / "drift.png", f"drift: {maker.method}")
    curves = {name: value.tolist() for name, value in measured.drift.values.items()}
    write_atomic(folder.path / "curves.json", json.dumps({"window": yard.of.window, **curves}) + "\n")
    folder.episodes(measured.samples)
    return rows


def rollout_rows(yard: Yardstick, made: np.ndarray, fed: np.ndarray | None, maker: RowMaker, *,
                 start: ReferenceClips | None, advance: Advance = no_advance) -> tuple[list[Row], DriftReport]:
    """All rows about a rollout, arguments as in `evaluate_rollout`, and what drift was measured among them.

    advance: told the shares of the work as they are done: .1 for drift, .7 for the probe, .2 for the rest.
    """
    real, settings = yard.real, yard.settings
    measured = measure_drift(made, yard.of, maker, seed=settings.seed)
    rows = list(measured.rows)
    rows += [] if maker.method == "sliding" else copying_rows(yard.model, real.windows, maker, seed=settings.seed)
    advance(0.1)  # a probe names actions, and cannot guess numbers:
    if fed is not None and fed.shape[-1] > 1 and np.isin(fed, (0, 1)).all() and (fed.sum(-1) <= 1).all():
        rows += action_rows(yard.learnt, real, made, fed, maker, steps=settings.feature_steps, seed=settings.seed,
                            advance=share_of(advance, 0.7))
    if start is not None:
        rows += truth_rows(real, made, start, maker, lpips=settings.lpips, seed=settings.seed)
        rows += memory_rows(real, made, fed, start, maker)
    if real.data == "balls":
        rows += ball_rows(real.clips(min(CLIPS, len(real))).frames, made, maker, settings.seed)
        rows += position_rows(real, made, start, maker, settings.seed) if start is not None else []
    if settings.i3d:
        length = max(yard.of.window, 16)
        near, far = (each.stretches(CLIPS, length).frames for each in (yard.learnt, real))
        rows += fvd_rows(settings.i3d, made, near, far, maker)
    advance(0.2)
    return rows, measured


def action_rows(learnt: RealVideo, real: RealVideo, made: np.ndarray, fed: np.ndarray, maker: RowMaker, *, steps: int,
                seed: int, advance: Advance = no_advance) -> list[Row]:
    """What a probe, trained `steps` steps on clips that the model has learnt from, sees of the actions fed."""
    clips = telling(partial(labelled_windows, learnt), steps, advance)
    probe = train_probe(clips, learnt.model.actions, steps=steps, seed=seed, device=learnt.model.device)
    held_out = real.clips(min(CLIPS, len(real)))
    assert held_out.actions is not None
    return probe_rows(probe, made, fed, (held_out.frames, held_out.actions), maker, seed=seed)


def measuring_features(settings: MetricSettings, learnt: RealVideo, advance: Advance = no_advance) -> PairEncoder:
    """Features of a file, or trained now, on the model's device. ValueError for those of frames of another size."""
    if settings.features is None:
        clips = telling(lambda step: learnt.windows(step)[0], settings.feature_steps, advance)
        return train_features(clips, steps=settings.feature_steps, seed=settings.seed, device=learnt.model.device)
    encoder = load_features(settings.features).to(learnt.model.device)
    if encoder.shape != learnt.model.shape:
        raise ValueError(f"{settings.features} looks at frames {encoder.shape}, the model makes {learnt.model.shape}")
    return encoder


def labelled_windows(real: RealVideo, step: int) -> tuple[Tensor, Tensor]:
    """Frames and actions of the windows of a step."""
    frames, actions = real.windows(step)
    assert actions is not None
    return frames, actions
