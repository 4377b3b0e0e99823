"""Rows of results.json about the drift of a rollout and its obedience to actions, and a picture of the drift."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.data.pixels import from_uint8
from dforce.report.plots.monitor import drift_panels
from dforce.report.rows import Row, make_row
from dforce.report.statistics import Interval, bootstrap_interval, bootstrap_of, success_interval
from dforce.video.metrics.drift import STATISTICS, Drift, Reference, distances, drift, floor, spans_of, worst_span
from dforce.video.metrics.features import ActionProbe, fed_and_seen, kappa

WORST = "worst 100"  # the name of the span of 100 frames that is the furthest from real video


class DriftReport(NamedTuple):
    """rows: of results.json; samples: lines of episodes.jsonl, one a rollout; drift: the curves."""

    rows: list[Row]
    samples: list[dict[str, Any]]
    drift: Drift


def measure_drift(frames: np.ndarray, of: Reference, maker: RowMaker, *, seed: int = 0) -> DriftReport:
    """Distances of frames uint8 [T, B, H, W, C] from real video and their floor; statistics over real ones."""
    curves, spans = drift(frames, of), spans_of(len(frames))
    share = success_interval((curves.broken >= 0).numpy(), rng=np.random.default_rng(seed))
    rows = [maker.row("broken off", share, unit="fraction of rollouts", higher=False)]
    worst = worst_span(frames, of) if len(spans) > 1 else spans[0]
    far = distances(frames, of, [*spans, *([worst] if len(spans) > 1 else [])])
    names = [f"{begin}-{end}" for begin, end in spans] + [WORST]
    for (begin, end), name, distance in zip([*spans, worst], names, far, strict=False):
        part, least = maker.having(frames=name), floor(of, frames.shape[1], end - begin)
        rows += [part.row("frechet", distance, higher=False), part.real().row("frechet", least, higher=False),
                 part.row("frechet / floor", distance.value / max(least.value, 1e-12), n=distance.n, unit="times",
                          higher=False)]
        if name == WORST:
            rows.append(part.row("begins at", begin, n=distance.n, unit="frame"))
        windows = slice(begin // of.window, max(end // of.window, begin // of.window + 1))
        rows += [part.mean(f"{name} / real", curves.values[name][:, windows].mean(1) / of.mean[name], seed=seed)
                 for name in ("brightness", "contrast", "change")]
    if len(spans) > 1:
        rows.append(maker.row("frechet last / first", far[len(spans) - 1].value / max(far[0].value, 1e-12), n=far[0].n,
                                unit="times", higher=False))
        for name in ("brightness", "change"):
            first, last = (curves.values[name][:, begin // of.window:end // of.window].mean(1)
                           for begin, end in (spans[0], spans[-1]))
            rows.append(maker.mean(f"{name} last / first", last / first.clamp(min=1e-6), seed=seed))
    frozen = curves.frozen.double().mean(1)
    rows.append(maker.mean("frozen windows", frozen, seed=seed, unit="fraction", higher=False))
    samples = [{"task": maker.task, "method": maker.method, **maker.variant, "sample": b,
                "broken_at": int(curves.broken[b]),
                **{f"{name}_last": float(curves.values[name][b, -1]) for name in STATISTICS},
                "frozen": float(frozen[b])} for b in range(frames.shape[1])]
    return DriftReport(rows, samples, curves)


def closeness(rows: list[Row]) -> str:
    """How many rollouts broke off, and how far the others are from real video, for the summary; "" where neither was
    measured."""
    broken = next((row for row in rows if row["metric"] == "broken off"), None)
    if broken is None:
        return ""
    far = {row["variant"]["frames"]: row["value"] for row in rows if row["metric"] == "frechet / floor"}
    shown = [f"frames {name} are {value:.3g}" for name, value in far.items() if value is not None and name != WORST]
    worst = f", the worst 100 {far[WORST]:.3g}" if far.get(WORST) is not None else ""
    return (f": {round((broken['value'] or 0) * broken['n'])} of {broken['n']} broke off from real video"
            + (f"; {shown[-1]} times as far from it as other real video is{worst}" if shown else ""))


def probe_rows(probe: ActionProbe, frames: np.ndarray, actions: np.ndarray, real: tuple[Tensor, Tensor],
               maker: RowMaker, *, seed: int = 0) -> list[Row]:
    """Kappa of the fed actions and those the probe sees, of the first, middle and last 100 frames, beside real clips.

    frames: uint8 [T, B, H, W, C]. actions: [T, B, A]. real: frames [N, T, C, H, W] and actions [N, T, A]. Intervals are
    bootstrapped over rollouts, or clips.
    """
    on_real = _kappa(probe, *real, seed)
    rows = [maker.real().row("action seen (kappa)", on_real, higher=True)]
    for begin, end in spans_of(len(frames)):
        clip, fed = from_uint8(frames[begin:end]).transpose(0, 1), torch.from_numpy(actions[begin:end]).transpose(0, 1)
        seen, part = _kappa(probe, clip, fed, seed), maker.having(frames=f"{begin}-{end}")
        rows.append(part.row("action seen (kappa)", seen, higher=True))
        if on_real.value:
            rows.append(part.row("action seen / real", seen.value / on_real.value, n=seen.n, unit="fraction",
                                 higher=True))
    return rows


def _kappa(probe: ActionProbe, frames: Tensor, actions: Tensor, seed: int) -> Interval:
    """Kappa over all clips [B, T, C, H, W], its interval over clips."""
    parts = [fed_and_seen(probe, frames[b:b + 1], actions[b:b + 1]) for b in range(len(frames))]

    def pooled(clips: np.ndarray) -> float:
        fed, seen = (torch.cat(each) for each in zip(*(parts[b] for b in clips), strict=True))
        return kappa(fed, seen, probe.actions)
    return bootstrap_of(pooled, len(parts), rng=np.random.default_rng(seed))


def picture(curves: Drift, of: Reference, file: Path, title: str) -> None:
    """The curves of every statistic, with the band of real windows."""
    middles = (np.arange(curves.z.shape[1]) + 0.5) * curves.window
    values = {name: value.numpy() for name, value in curves.values.items()}
    drift_panels(middles.tolist(), values, of.band, title=title).savefig(file)


class RowMaker(NamedTuple):
    """Makes rows of one task, method and variant (see `dforce.report.rows.Row`)."""

    task: str
    method: str
    variant: dict[str, Any]

    def real(self) -> RowMaker:
        """Real video, beside the same method."""
        return self._replace(method="real video")

    def having(self, **variant: Any) -> RowMaker:
        """With more to its variant."""
        return self._replace(variant={**self.variant, **variant})

    def row(self, metric: str, estimate: Interval | float, *, n: int | None = None, unit: str = "",
            higher: bool | None = None) -> Row:
        """A row of an interval, or of a number and how many samples it is of; what is not finite becomes null."""
        interval = estimate if isinstance(estimate, Interval) else Interval(estimate, math.nan, math.nan, n or 0)
        known: Interval | float | None = interval
        if not math.isfinite(interval.low) or not math.isfinite(interval.high):
            known = interval.value
        if not math.isfinite(interval.value):
            known = None
        return make_row(self.task, self.method, metric, known, n=interval.n, variant=self.variant, unit=unit,
                        higher=higher)

    def mean(self, metric: str, values: Tensor, *, seed: int = 0, unit: str = "times",
             higher: bool | None = None) -> Row:
        """A row of the mean over rollouts [B], bootstrapped over them; without interval where all are equal."""
        interval = bootstrap_interval(values.double().numpy(), rng=np.random.default_rng(seed))
        return self.row(metric, interval if interval.low < interval.high else interval.value, n=interval.n, unit=unit,
                        higher=higher)
