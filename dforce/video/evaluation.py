"""The report of a rollout: everything that can be measured about it, into its run folder."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.data.generate.balls import simulate
from dforce.data.pixels import from_uint8
from dforce.runs.folder import RunFolder, write_atomic
from dforce.video.metrics.drift import Reference, distance, reference, spans_of
from dforce.video.metrics.features import PairEncoder, load_features, save_features, train_features
from dforce.video.metrics.frechet import psnr, ssim
from dforce.video.metrics.fvd_lpips import I3D, clips_of, load_lpips
from dforce.video.metrics.measure import Measured, Row, mean_row, measure, picture, probe_rows, row
from dforce.video.metrics.memory import memory
from dforce.video.metrics.physics import physics
from dforce.video.metrics.probe import train_probe
from dforce.video.model import VideoModel
from dforce.video.reference_clips import Clip, RealVideo

CLIPS = 32           # real clips on either side of a distance
STRETCH = 100        # frames of each
AGES = (1, 20), (20, 60), (60, 300)  # frames since a place was left
FIRST = (10, 50, 100)  # frames over which a rollout is compared with what really came


class Wanted(NamedTuple):
    """What to measure. window: frames; features: a file, None trains them for `steps` steps; i3d, lpips: paths."""

    window: int = 50
    features: str | None = None
    steps: int = 600
    i3d: str | None = None
    lpips: tuple[str, str] | None = None
    seed: int = 0


class Yard(NamedTuple):
    """What rollouts of a model are held against. learnt, real: clips that it has seen, and has not; of: both, as far
    as drift is measured; counts: clips of either."""

    model: VideoModel
    learnt: RealVideo
    real: RealVideo
    of: Reference
    counts: tuple[int, int]
    wanted: Wanted


def yardstick(model: VideoModel, real: RealVideo, frames: int, wanted: Wanted) -> Yard:
    """For rollouts of so many frames; trains the features, unless `wanted` names a file."""
    window = min(wanted.window, frames)
    learnt = RealVideo(model, real.data, split="train", seed=wanted.seed)
    counts = min(CLIPS, max(len(learnt), 2)), min(CLIPS, max(len(real), 2))
    near, far = (each.clips(n, max(window, min(STRETCH, each.shortest))).frames
                 for each, n in zip((learnt, real), counts, strict=True))
    return Yard(model, learnt, real, reference(features(wanted, learnt), near, far, window=window), counts, wanted)


def report(folder: RunFolder, model: VideoModel, real: RealVideo, made: np.ndarray, fed: np.ndarray | None, *,
           wanted: Wanted, method: str, variant: dict[str, Any], start: Clip | None) -> list[Row]:
    """Rows about the frames `made`, uint8 [T, B, H, W, C]; lines go into episodes.jsonl, a picture into media/,
    the curves of all windows into curves.json ({statistic: [B, n]}).

    fed: the actions [T, B, A]. start: the real clips that the rollouts began with.
    """
    yard = yardstick(model, real, len(made), wanted)
    save_features(yard.of.encoder, folder.path / "features.safetensors")
    rows, found = rows_of(yard, made, fed, method=method, variant=variant, start=start)
    picture(found.drift, yard.of, folder.media / "drift.png", f"drift: {method}")
    curves = {name: value.tolist() for name, value in found.drift.values.items()}
    write_atomic(folder.path / "curves.json", json.dumps({"window": yard.of.window, **curves}) + "\n")
    folder.episodes(found.samples)
    return rows


def rows_of(yard: Yard, made: np.ndarray, fed: np.ndarray | None, *, method: str, variant: dict[str, Any],
            start: Clip | None) -> tuple[list[Row], Measured]:
    """All rows about a rollout, arguments as in `report`, and what drift was measured among them."""
    real, wanted = yard.real, yard.wanted
    found = measure(made, yard.of, task=real.data, method=method, variant=variant, seed=wanted.seed)
    rows, about = list(found.rows), {"task": real.data, "method": method}
    if fed is not None and one_hot(fed):
        rows += of_actions(yard.learnt, real, made, fed, steps=wanted.steps, seed=wanted.seed, method=method,
                           variant=variant)
    rows += against_truth(real, made, start, wanted, about, variant)
    rows += of_memory(real, made, fed, start, about, variant)
    if real.data == "balls":
        rows += of_balls(real, made, about, variant, wanted.seed)
        rows += of_places(real, made, start, about, variant, wanted.seed)
    if wanted.i3d:
        length = max(yard.of.window, 16)
        clips = (each.clips(n, length) for each, n in zip((yard.learnt, real), yard.counts, strict=True))
        rows += fvd(I3D(wanted.i3d), made, *clips, about, variant)
    return rows, found


def of_actions(learnt: RealVideo, real: RealVideo, made: np.ndarray, fed: np.ndarray, *, steps: int, seed: int,
               method: str, variant: dict[str, Any]) -> list[Row]:
    """What a probe, trained `steps` steps on clips that the model has learnt from, sees of the actions fed."""
    probe = train_probe(lambda step: labelled(learnt, step), learnt.model.actions, steps=steps, seed=seed,
                        device=learnt.model.device)
    held_out = real.clips(min(CLIPS, max(len(real), 2)))
    assert held_out.actions is not None
    return probe_rows(probe, made, fed, (held_out.frames, held_out.actions), task=real.data, method=method,
                      variant=variant, seed=seed)


def features(wanted: Wanted, learnt: RealVideo) -> PairEncoder:
    """Those of a file, or trained now, on the model's device. ValueError where they are of frames of another size."""
    if wanted.features is None:
        return train_features(lambda step: learnt.windows(step)[0], steps=wanted.steps, seed=wanted.seed,
                              device=learnt.model.device)
    encoder = load_features(wanted.features).to(learnt.model.device)
    if encoder.shape != learnt.model.shape:
        raise ValueError(f"{wanted.features} looks at frames {encoder.shape}, the model makes {learnt.model.shape}")
    return encoder


def labelled(real: RealVideo, step: int) -> tuple[Tensor, Tensor]:
    frames, actions = real.windows(step)
    assert actions is not None
    return frames, actions


def one_hot(actions: np.ndarray) -> bool:
    """Is every action one of several, or none at all? A probe names actions, and cannot guess numbers."""
    return actions.shape[-1] > 1 and bool(np.isin(actions, (0, 1)).all() and (actions.sum(-1) <= 1).all())


def against_truth(real: RealVideo, made: np.ndarray, start: Clip | None, wanted: Wanted, about: Row,
                  variant: dict[str, Any]) -> list[Row]:
    """PSNR, SSIM and LPIPS of the first frames with what really followed the context: a question of memory and of
    obedience, for a while; later another future is as good."""
    if start is None:
        return []
    whole, _ = real.whole(start.numbers)
    truth = whole[:, start.frames.shape[1]:]
    time, rows = min(truth.shape[1], len(made)), []
    if time == 0:
        return []
    guess = from_uint8(made[:time]).transpose(0, 1)
    scores: dict[str, tuple[Any, str, bool]] = {"psnr": (psnr, "dB", True)}
    if min(truth.shape[-2:]) >= 11:
        scores["ssim"] = (ssim, "", True)
    if wanted.lpips:
        scores["lpips"] = (load_lpips(wanted.lpips), "", False)
    for end in [n for n in FIRST if n <= time]:
        for name, (score, unit, higher) in scores.items():
            each = score(guess[:, :end], truth[:, :end]).mean(1)
            rows.append(mean_row(about, {**variant, "frames": f"0-{end}"}, name, each, wanted.seed, unit, higher))
    return rows


def of_memory(real: RealVideo, made: np.ndarray, fed: np.ndarray | None, start: Clip | None, about: Row,
              variant: dict[str, Any]) -> list[Row]:
    """How much better the right frame is drawn where the camera comes back; only where true poses are known (x, y and
    an angle) and the clips' own actions were fed."""
    if start is None or start.actions is None or fed is None:
        return []
    whole, told = real.whole(start.numbers)
    before = start.frames.shape[1]
    time = min(whole.shape[1], before + len(made))
    pose = real.set.poses(start.numbers, frames=time)
    assert told is not None
    same = np.array_equal(told[:, before:time].transpose(0, 1).numpy(), fed[:time - before])
    if pose is None or pose.shape[2] != 3 or not same or time <= before:
        return []
    drawn = torch.cat([start.frames, from_uint8(made[:time - before]).transpose(0, 1)], 1)
    rows = []
    for name, known in (("any place", None), ("of the context", before)):
        found = memory(drawn, whole[:, :time], pose, start=before, known=known)
        for young, old in AGES:
            chosen = (found.age >= young) & (found.age < old)
            if chosen.any():
                where = {**variant, "revisit of": name, "after frames": f"{young}-{old}"}
                for method, gain in ((about["method"], found.gain), ("real video", found.real)):
                    who = {**about, "method": method}
                    rows.append(mean_row(who, where, "memory gain", gain[chosen], 0, "dB", True))
    return rows


def of_balls(real: RealVideo, made: np.ndarray, about: Row, variant: dict[str, Any], seed: int) -> list[Row]:
    """Mass, speed and shape of the balls of the first, middle and last frames, and of real video."""
    truth = real.clips(min(CLIPS, len(real))).frames
    rows = _balls(truth, {"task": about["task"], "method": "real video"}, variant, seed)
    for begin, end in spans_of(len(made)):
        clip = from_uint8(made[begin:end]).transpose(0, 1)
        rows += _balls(clip, about, {**variant, "frames": f"{begin}-{end}"}, seed)
    return rows


def _balls(frames: Tensor, about: Row, variant: dict[str, Any], seed: int) -> list[Row]:
    lit = int((frames.amax((0, 1, 3, 4)) > 0).sum())
    found = physics(frames, balls=max(lit, 1))
    units = {"mass": "times the balls'", "residual": "pixel value squared", "speed": "times the balls'",
             "energy": "times the balls'", "bad": "fraction of frames"}
    return [mean_row(about, variant, f"{name} of balls" if name != "bad" else "bad frames", found[name].nanmean(1),
                     seed, unit, False if name in ("residual", "bad") else None)
            for name, unit in units.items() if not found[name].isnan().all()]


def of_places(real: RealVideo, made: np.ndarray, start: Clip | None, about: Row, variant: dict[str, Any],
              seed: int) -> list[Row]:
    """Distance in pixels of the balls from where they really are, by the exact dynamics from the end of the context."""
    if start is None:
        return []
    before = start.frames.shape[1]
    pose = real.set.poses(start.numbers, frames=before)
    assert pose is not None and pose.shape[2] == 4                             # x, y and their velocities
    now = pose[:, -1].double()[:, None]
    places, _ = simulate(now[..., :2], now[..., 2:], max(FIRST) + 1)
    rows = []
    for end in [n for n in FIRST if n <= len(made)]:
        clip = from_uint8(made[:end]).transpose(0, 1)
        error = physics(clip, places[:, 1:end + 1])["error"].nanmean(1)
        rows.append(mean_row(about, {**variant, "frames": f"0-{end}"}, "position error of balls", error.nan_to_num(
            real.model.shape[1]), seed, "pixels", False))
    return rows


def fvd(i3d: I3D, made: np.ndarray, learnt: Clip, held_out: Clip, about: Row, variant: dict[str, Any]) -> list[Row]:
    """FVD of clips of 16 frames against real ones, and that of held-out real clips: biased where clips are few."""
    to = i3d(clips_of(learnt.frames))
    least = distance(i3d(clips_of(held_out.frames))[:, None], to)
    rows = [row({**about, "method": "real video"}, variant, "fvd[i3d]", least.value, least.low, least.high, least.n,
                higher=False)]
    for begin, end in spans_of(len(made)):
        if end - begin >= 16:
            seen = i3d(clips_of(from_uint8(made[begin:end]).transpose(0, 1)))
            each = distance(seen[:, None], to)
            rows.append(row(about, {**variant, "frames": f"{begin}-{end}"}, "fvd[i3d]", each.value, each.low, each.high,
                            each.n, higher=False))
    return rows
