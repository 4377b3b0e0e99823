"""How sure one can be of a mean or a share: 95% intervals over episodes or samples, and over seeds."""

from collections.abc import Callable
from math import exp, hypot, inf, isnan, nan, sqrt
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054  # two-sided 95% quantile of the normal law
ERROR = "_error"         # ending of the name under which half the interval of a measure stands beside it


class Interval(NamedTuple):
    """An estimate and its 95% interval over n episodes or samples."""

    value: float
    low: float
    high: float
    n: int


def bootstrap_interval(values: np.ndarray, seed: np.ndarray | None = None, *, rng: np.random.Generator,
                       draws: int = 2000) -> Interval:
    """Mean and 95% percentile bootstrap: seeds are drawn first, then episodes within each drawn seed.

    values: [E]; seed: [E] or None for one seed. With S seeds the spread between them comes out too small by about
    sqrt((S - 1) / S), as in any bootstrap of S things: three seeds are few. Memory: draws * E numbers.
    """
    groups = [values] if seed is None else [values[seed == s] for s in np.unique(seed)]
    total, count = np.zeros(draws), np.zeros(draws)
    for _ in groups:
        picked = rng.integers(len(groups), size=draws)
        for number, group in enumerate(groups):
            where = np.flatnonzero(picked == number)
            drawn = rng.integers(len(group), size=(len(where), len(group)))
            total[where] += group[drawn].sum(axis=1)
            count[where] += len(group)
    low, high = np.percentile(total / count, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def wilson_interval(successes: int, n: int) -> Interval:
    """Wilson's score interval for a proportion (1927): honest at 0 and 1, where a bootstrap has no width."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"want 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * sqrt(p * (1 - p) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), n)


def success_interval(success: np.ndarray, seed: np.ndarray | None = None, *, rng: np.random.Generator) -> Interval:
    """Share of successes [E] with Wilson's interval; with several seeds, the wider of it and the bootstrap, end by end.

    Where every episode of every seed succeeds the bootstrap has no width at all, so Wilson over all episodes is
    the least that is claimed.
    """
    wilson = wilson_interval(int(success.sum()), len(success))
    if seed is None or len(np.unique(seed)) == 1:
        return wilson
    between = bootstrap_interval(success, seed, rng=rng)
    return wilson._replace(low=min(wilson.low, between.low), high=max(wilson.high, between.high))


def paired_difference(a: np.ndarray, b: np.ndarray, seed: np.ndarray | None = None, *, rng_seed: int = 0) -> Interval:
    """Mean of a - b with its bootstrap interval, a and b [E] being two methods on the SAME starts in the same order."""
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"a pair needs the same episodes on both sides, got {a.shape} and {b.shape}")
    return bootstrap_interval(a - b, seed, rng=np.random.default_rng(rng_seed))


def normal_interval(value: float, error: float, n: int, *, least: float = -inf) -> Interval:
    """An estimate whose standard error is known, as if its law were normal; not below `least`. nan: no interval."""
    half = Z95 * error
    return Interval(value, nan if isnan(half) else max(least, value - half), value + half, n)


def ratio_interval(a: Interval, b: Interval) -> Interval:
    """a / b, both positive, on the log scale as if they were independent; nan where one of them has no interval."""
    errors = [(each.high - each.low) / 2 / Z95 / each.value for each in (a, b)]
    ratio, width = a.value / b.value, Z95 * hypot(*errors)
    return Interval(ratio, ratio * exp(-width), ratio * exp(width), a.n)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of the middle half, [..., E] -> [...]: a quarter is dropped at either end, the last of it in part."""
    ordered = np.sort(values, axis=-1)
    rank, count = np.arange(values.shape[-1]), values.shape[-1]
    weight = np.clip(np.minimum(rank + 1, 0.75 * count) - np.maximum(rank, 0.25 * count), 0, 1)
    return (weight * ordered).sum(axis=-1) / weight.sum()


def probability_of_improvement(a: np.ndarray, b: np.ndarray, seed: np.ndarray) -> Interval:
    """How often an episode [E] of a is better than that of b from the same start, ties half, and its interval."""
    return resampled(lambda samples: samples.mean(axis=-1), (a > b) + 0.5 * (a == b), seed)


def median_interval(values: np.ndarray) -> Interval:
    """Median of values [E] of one seed, and its interval."""
    return resampled(lambda samples: np.median(samples, axis=-1), values, np.zeros(len(values)))


def resampled(statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray, seed: np.ndarray, *,
              draws: int = 2000, rng_seed: int = 0) -> Interval:
    """statistic([D, E] samples) -> [D] of episodes [E], by a 95% bootstrap: seeds are drawn, then episodes."""
    rng = np.random.default_rng(rng_seed)
    groups = [np.flatnonzero(seed == s) for s in np.unique(seed)]
    sizes = np.array([len(group) for group in groups])
    padded = np.zeros((len(groups), sizes.max()), dtype=int)
    for row, group in zip(padded, groups, strict=True):
        row[:len(group)] = group
    picked = rng.integers(len(groups), size=(draws, len(groups)))
    within = (rng.random((*picked.shape, sizes.max())) * sizes[picked][..., None]).astype(int)
    chosen = padded[picked[..., None], within]  # [D, S, largest size]
    used = np.arange(sizes.max()) < sizes[picked][..., None]
    drawn = np.empty(draws)
    for total in np.unique(used.sum((1, 2))):  # seeds with fewer episodes make smaller samples
        same = used.sum((1, 2)) == total
        drawn[same] = statistic(values[chosen[same][used[same]]].reshape(-1, total))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(statistic(values[None])[0]), float(low), float(high), len(values))


def bootstrap_of(statistic: Callable[[np.ndarray], float], n: int, *, rng: np.random.Generator,
                 draws: int = 500) -> Interval:
    """A statistic of n samples (their numbers [n] -> value) with its 95% bootstrap, without draws of NaN."""
    value = statistic(np.arange(n))
    if n < 2:
        return Interval(value, nan, nan, n)
    low, high = np.nanpercentile([statistic(rng.integers(n, size=n)) for _ in range(draws)], [2.5, 97.5])
    return Interval(value, float(low), float(high), n)


def jackknife_interval(value: float, without: np.ndarray) -> Interval:
    """A statistic >= 0 with its 95% interval, from its values without[i] of all samples but the i-th [E]; n >= 3.

    For statistics that a bootstrap distorts: a sample drawn twice narrows a covariance (Quenouille 1949).
    """
    n = len(without)
    if n < 3:
        return Interval(value, nan, nan, n)
    error = ((n - 1) / n * np.square(without - np.mean(without)).sum()) ** 0.5
    return Interval(value, max(0.0, value - Z95 * error), value + Z95 * error, n)


def spread_interval(values: np.ndarray) -> Interval:
    """The mean of repeated measurements [E], and what 95% of them lie in."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))
