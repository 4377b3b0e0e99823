"""Random numbers by counters: what batch s draws is a function of (seed, stream, s), whoever draws it and when.

The rows of a batch fall into equal parts, virtual shards, which are dealt out to processes, however many there are.
"""

import numpy as np

SPLIT, TRAIN, VAL = 0, 1, 2  # streams: of orders and splits, of training batches, of validation batches


def philox_uniform(size: int, *, seed: int, stream: int, step: int) -> np.ndarray:
    """[size] float64 in [0, 1) from raw Philox words (Salmon et al. 2011), which numpy keeps between versions."""
    if seed < 0 or step < 0:
        raise ValueError(f"seed and step must not be negative, got {seed} and {step}")
    words = np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]).random_raw(size)
    return (words >> np.uint64(11)) * 2.0**-53


def split_episodes(count: int, held_out: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the training and of the held-out episodes, each ascending; a function of (count, held_out, seed)."""
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out is the part of the episodes kept for validation, in [0, 1), got {held_out}")
    kept = min(max(1, round(held_out * count)), count - 1) if held_out else 0
    order = np.argsort(philox_uniform(count, seed=seed, stream=SPLIT, step=0), kind="stable")
    return np.sort(order[kept:]), np.sort(order[:kept])


def check_window(split: str, **sizes: int) -> None:
    """ValueError unless split is known, all sizes are positive, and the first, a window's, is a multiple of `stack`."""
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', got {split!r}")
    if min(sizes.values()) < 1:
        raise ValueError(f"{', '.join(sizes)} must be positive, got {', '.join(map(str, sizes.values()))}")
    (name, length), stack = next(iter(sizes.items())), sizes["stack"]
    if length % stack:
        near = max(stack, round(length / stack) * stack)
        raise ValueError(f"{name}={length} is not divisible by stack={stack}: the nearest {name} is {near}")


def shard_count(batch: int, most: int) -> int:
    """Number of virtual shards: the largest divisor of `batch` up to `most`, whatever the number of processes."""
    return max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)


def shard_rows(shards: tuple[int, int] | None, count: int, batch: int) -> np.ndarray:
    """Numbers of the rows in shards lo..hi-1 of `count`; all for None. ValueError for shards that do not exist."""
    lo, hi = shards or (0, count)
    if not 0 <= lo < hi <= count:
        raise ValueError(f"shards (lo, hi) must lie in 0..{count} with lo < hi, got {(lo, hi)}")
    part = batch // count
    return np.arange(lo * part, hi * part)
