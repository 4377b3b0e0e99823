"""The rows of a batch in equal parts, virtual shards, which are dealt out to processes, however many there are."""

from __future__ import annotations

import numpy as np


def shards_of(batch: int, most: int) -> int:
    """In how many parts: the largest divisor of `batch` up to `most`, so that it depends on no number of processes."""
    return max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)


def rows_of(shards: tuple[int, int] | None, count: int, batch: int) -> np.ndarray:
    """Numbers of the rows that shards lo..hi-1 of `count` hold; None is all of them. ValueError for no such shards."""
    lo, hi = shards or (0, count)
    if not 0 <= lo < hi <= count:
        raise ValueError(f"shards (lo, hi) must lie in 0..{count} with lo < hi, got {(lo, hi)}")
    part = batch // count
    return np.arange(lo * part, hi * part)
