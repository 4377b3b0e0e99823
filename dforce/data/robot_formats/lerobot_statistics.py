"""Statistics of features as lerobot computes them: of an episode, and joined over episodes by their numbers of frames.

The deviation is that of the whole (1 / n). Quantiles of several episodes are averaged, as lerobot does; those of an
episode are exact, where lerobot has histograms. Of pictures a sample of frames is taken, in 0..1, a number a channel;
their deviation is exact, too, where lerobot 0.4.4 squares in 8 bits.
Source: LeRobot's compute_stats, version 3.0 of the data.
"""

from collections.abc import Mapping, Sequence

import numpy as np

QUANTILES = {"q01": .01, "q10": .1, "q50": .5, "q90": .9, "q99": .99}
SMALL, LARGE = 150, 300  # pixels: pictures larger than LARGE are thinned to about SMALL
Statistics = dict[str, np.ndarray]


def of_vectors(values: np.ndarray) -> Statistics:
    """Of a column [frames, width]."""
    return _of(values.astype(np.float64), (0,), len(values))


def of_pictures(frames: np.ndarray) -> Statistics:
    """Of uint8 [n, H, W, 3]: [3, 1, 1] each."""
    height, width = frames.shape[1:3]
    step = max(int(max(height, width) / SMALL), 1) if max(height, width) >= LARGE else 1
    channels = np.moveaxis(frames[:, ::step, ::step], -1, 1) / 255
    statistics = _of(channels, (0, 2, 3), len(frames))
    return {name: value if name == "count" else value[:, None, None] for name, value in statistics.items()}


def sampled(frames: int) -> np.ndarray:
    """Numbers of the frames of an episode whose pictures count."""
    count = max(min(frames, 100), min(int(frames ** .75), 10_000))
    return np.round(np.linspace(0, frames - 1, count)).astype(int)


def over_episodes(parts: Sequence[Mapping[str, np.ndarray]]) -> Statistics:
    """Of several episodes, from the statistics of each."""
    count = np.stack([part["count"] for part in parts]).astype(np.float64)
    mean, std = (np.stack([part[name] for part in parts]) for name in ("mean", "std"))
    weight = (count / count.sum()).reshape(-1, *[1] * (mean.ndim - 1))
    centre = (mean * weight).sum(0)
    averaged = {name: (np.stack([part[name] for part in parts]) * weight).sum(0) for name in QUANTILES}
    return {"min": np.min([part["min"] for part in parts], 0), "max": np.max([part["max"] for part in parts], 0),
            "mean": centre, "std": np.sqrt(((std ** 2 + (mean - centre) ** 2) * weight).sum(0)),
            "count": count.sum(0).astype(np.int64), **averaged}


def _of(values: np.ndarray, axes: tuple[int, ...], count: int) -> Statistics:
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=axes)
    return {"min": values.min(axes), "max": values.max(axes), "mean": values.mean(axes), "std": values.std(axes),
            "count": np.array([count]), **dict(zip(QUANTILES, quantiles, strict=True))}
