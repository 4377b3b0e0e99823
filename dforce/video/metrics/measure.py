"""All that is measured about one rollout, as rows of results.json, lines of episodes.jsonl, and a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.data.pixels import from_uint8
from dforce.report.plots.video import drift_panels
from dforce.report.statistics import bootstrap_interval, success_interval
from dforce.video.metrics import drift as drifting
from dforce.video.metrics.probe import InverseDynamics, kappa, told_and_seen

Row = dict[str, Any]


class Measured(NamedTuple):
    """rows: of results.json; samples: of episodes.jsonl, one a rollout; drift: the curves."""

    rows: list[Row]
    samples: list[Row]
    drift: drifting.Drift


def measure(frames: np.ndarray, of: drifting.Reference, *, task: str, method: str, variant: dict[str, Any],
            seed: int = 0) -> Measured:
    """frames: uint8 [T, B, H, W, C], generated ones alone. Distances of the first, middle and last 100 frames beside
    their floor, statistics of the last windows against real video, and when rollouts broke off."""
    found = drifting.drift(frames, of)
    about = {"task": task, "method": method}
    rows: list[Row] = []
    spans = drifting.spans_of(len(frames))
    far = drifting.distances(frames, of, spans)
    for (begin, end), each in zip(spans, far, strict=True):
        where = {**variant, "frames": f"{begin}-{end}"}
        rows.append(row(about, where, "frechet", each.value, each.low, each.high, each.n, higher=False))
        least = drifting.floor(of, frames.shape[1], end - begin)
        rows.append(row({"task": task, "method": "real video"}, where, "frechet", least.value, least.low, least.high,
                        least.n, higher=False))
        rows.append(row(about, where, "frechet / floor", each.value / max(least.value, 1e-12), None, None, each.n,
                        unit="times", higher=False))
        windows = slice(begin // of.window, max(end // of.window, begin // of.window + 1))
        for name in ("brightness", "contrast", "change"):
            ratio = found.values[name][:, windows].mean(1) / of.mean[name]
            rows.append(mean_row(about, where, f"{name} / real", ratio, seed))
    if len(spans) > 1:
        rows.append(row(about, variant, "frechet last / first", far[-1].value / max(far[0].value, 1e-12), None, None,
                        far[0].n, unit="times", higher=False))
        for name in ("brightness", "change"):
            first, last = (found.values[name][:, begin // of.window:end // of.window].mean(1)
                           for begin, end in (spans[0], spans[-1]))
            rows.append(mean_row(about, variant, f"{name} last / first", last / first.clamp(min=1e-6), seed))
    broke = found.broken >= 0
    share = success_interval(broke.numpy(), rng=np.random.default_rng(seed))
    rows.append(row(about, variant, "broken off", *share, unit="fraction of rollouts", higher=False))
    frozen = found.frozen.double().mean(1)
    rows.append(mean_row(about, variant, "frozen windows", frozen, seed, "fraction", higher=False))
    samples = [{**about, **variant, "sample": b, "broken_at": int(found.broken[b]),
                **{f"{name}_last": float(found.values[name][b, -1]) for name in drifting.STATISTICS},
                "frozen": float(frozen[b])} for b in range(frames.shape[1])]
    return Measured(rows, samples, found)


def probe_rows(probe: InverseDynamics, frames: np.ndarray, actions: np.ndarray, real: tuple[Tensor, Tensor], *,
               task: str, method: str, variant: dict[str, Any], seed: int = 0) -> list[Row]:
    """How much of the fed actions the probe sees in the first, middle and last 100 frames, beside real clips.

    Kappa (agreement beyond chance) on generated frames, the same on real held-out clips, and their ratio; intervals
    are bootstrapped over rollouts, or clips.
    """
    on_real, rows = _kappas(probe, *real, seed), []
    rows.append(row({"task": task, "method": "real video"}, variant, "action seen (kappa)", *on_real, higher=True))
    for begin, end in drifting.spans_of(len(frames)):
        clip = from_uint8(frames[begin:end]).transpose(0, 1)
        fed = torch.from_numpy(actions[begin:end]).transpose(0, 1)
        found, where = _kappas(probe, clip, fed, seed), {**variant, "frames": f"{begin}-{end}"}
        about = {"task": task, "method": method}
        rows.append(row(about, where, "action seen (kappa)", *found, higher=True))
        if on_real[0]:
            rows.append(row(about, where, "action seen / real", found[0] / on_real[0], None, None, found[3],
                            unit="fraction", higher=True))
    return rows


def _kappas(probe: InverseDynamics, frames: Tensor, actions: Tensor, seed: int,
            ) -> tuple[float, float | None, float | None, int]:
    """(kappa over all clips, low, high, clips)."""
    parts = [told_and_seen(probe, frames[b:b + 1], actions[b:b + 1]) for b in range(len(frames))]
    value = kappa(*(torch.cat(each) for each in zip(*parts, strict=True)), probe.actions)
    if len(parts) < 2:
        return value, None, None, len(parts)
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(500):
        chosen = [parts[i] for i in rng.integers(len(parts), size=len(parts))]
        drawn.append(kappa(*(torch.cat(each) for each in zip(*chosen, strict=True)), probe.actions))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return value, float(low), float(high), len(parts)


def picture(found: drifting.Drift, of: drifting.Reference, file: Path, title: str) -> None:
    """The curves of every statistic, with the band of real windows."""
    middles = (np.arange(found.z.shape[1]) + 0.5) * found.window
    values = {name: value.numpy() for name, value in found.values.items()}
    drift_panels(middles.tolist(), values, of.band, title=title).savefig(file)


def mean_row(about: Row, variant: Row, metric: str, values: Tensor, seed: int, unit: str = "times",
             higher: bool | None = None) -> Row:
    """A row of a mean over rollouts [B]."""
    each = bootstrap_interval(values.double().numpy(), rng=np.random.default_rng(seed))
    alone = each.n < 2
    return row(about, variant, metric, each.value, None if alone else each.low, None if alone else each.high, each.n,
               unit=unit, higher=higher)


def row(about: Row, variant: Row, metric: str, value: float, low: float | None, high: float | None, n: int, *,
        unit: str = "", higher: bool | None = None) -> Row:
    """A row of one seed; a value that is not finite is null."""
    known = math.isfinite(value)
    return {**about, "variant": variant, "metric": metric, "value": value if known else None,
            "low": low if known else None, "high": high if known else None, "n": n, "seeds": 1, "unit": unit,
            "higher_is_better": higher}
