"""Fair races: ways of computing one thing take turns, their results compared before a clock runs."""

import gc
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.core.tree import leaves
from dforce.report.rows import Row, make_row
from dforce.report.statistics import median_interval

FEWEST = 3  # rounds, however long they take


class Way(NamedTuple):
    """One way of computing what its rivals compute too."""

    name: str
    run: Callable[[], Any]                   # what is timed
    result: Callable[[], Any] | None = None  # must agree with the first way's, tensors in any nest; None: run's
    tolerance: float = 1e-4                  # largest rms of the difference, as a part of the first way's rms


class Timings(NamedTuple):
    """What a race measured."""

    rows: list[Row]             # of results.json
    runs: list[dict[str, Any]]  # of episodes.jsonl, one flat object a timed run


class Race(NamedTuple):
    """The outcome of a race, by the names of the ways."""

    seconds: dict[str, np.ndarray]  # [R], of each round
    difference: dict[str, float]    # relative, of the result from that of the first way

    def speedup(self, name: str, over: str) -> np.ndarray:
        """[R]: how many times as fast `name` was as `over`, in every round."""
        return self.seconds[over] / self.seconds[name]

    def measured(self, task: str, variant: dict[str, Any], *, metric: str = "time") -> Timings:
        """Rows of time, speed-up over the first way and difference of the results from its own."""
        first, *_ = self.seconds
        rows, runs = [], []
        for name, seconds in self.seconds.items():
            rows.append(median_row(task, name, metric, seconds, variant=variant, unit="s", higher=False))
            if name != first:
                rows.append(median_row(task, name, "speed-up", self.speedup(name, first), variant=variant,
                                       unit="times the first", higher=True))
                rows.append(make_row(task, name, "difference", self.difference[name], n=1, variant=variant,
                                     unit="relative rms"))
            runs += [{"task": task, "method": name, **variant, "round": i, "seconds": s} for i, s in enumerate(seconds)]
        return Timings(rows, runs)


def race(ways: Sequence[Way], *, rounds: int = 9, seconds: float = 60.0,
         timer: Callable[[], float] = time.perf_counter) -> Race:
    """Times the ways in turn, after their results agreed.

    Every round runs each once, every other round in reverse order, `rounds` times or until `seconds` have passed (but
    at least 3 times). timer: time.process_time counts this process's own seconds, where a busy machine makes it wait.
    """
    if rounds < 1:
        raise ValueError(f"a race has at least one round, got rounds={rounds}")
    names = [way.name for way in ways]
    if len(set(names)) < len(names):
        raise ValueError(f"ways need names of their own, got {names}")
    difference = agree(ways)
    for way in ways:
        way.run()  # the first call also prepares kernels, caches and threads
    taken: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for index in range(rounds):
        if index >= FEWEST and time.perf_counter() - begin > seconds:
            break
        gc.collect()  # the collector's turn; it rests while a clock runs
        for way in ways if index % 2 == 0 else reversed(ways):
            taken[way.name].append(clock(way.run, timer))
    return Race({name: np.array(values) for name, values in taken.items()}, difference)


def clock(run: Callable[[], Any], timer: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, until the device has finished it."""
    gc.disable()
    try:
        _finish()
        begin = timer()
        run()
        _finish()
        return timer() - begin
    finally:
        gc.enable()


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def agree(ways: Sequence[Way]) -> dict[str, float]:
    """Relative difference of every way's result from the first one's; AssertionError where it exceeds the tolerance."""
    first, *others = ways
    reference = _results(first)
    difference = {first.name: 0.0}
    for way in others:
        gap = difference[way.name] = relative_difference(_results(way), reference)
        if not gap <= way.tolerance:  # NaN is no agreement either
            raise AssertionError(f"{way.name!r} computes something else than {first.name!r}: they differ by "
                                 f"{gap:.3g} of its size, {way.tolerance:g} is allowed; nothing was timed")
    return difference


def _results(way: Way) -> list[Tensor]:
    return [leaf.detach().double().cpu() for leaf in leaves((way.result or way.run)())]


def relative_difference(results: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest over the tensors of rms(results - wanted) / rms(wanted)."""
    parts = [(a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-30)
             for a, b in zip(results, wanted, strict=True)]
    return float(torch.stack(parts).max())  # unlike Python's max, it does not lose a NaN


def all_timings(parts: Iterable[Timings]) -> Timings:
    """The rows and the runs of all parts."""
    parts = list(parts)
    return Timings([row for part in parts for row in part.rows], [run for part in parts for run in part.runs])


def median_row(task: str, method: str, metric: str, samples: Sequence[float] | np.ndarray, *, variant: dict[str, Any],
               unit: str = "", higher: bool | None = None) -> Row:
    """A row of results.json: the median of the samples, and its interval where there are several."""
    values = np.asarray(samples, dtype=float)
    estimate = median_interval(values) if len(values) > 1 else float(values[0])
    return make_row(task, method, metric, estimate, n=len(values), variant=variant, unit=unit, higher=higher)
