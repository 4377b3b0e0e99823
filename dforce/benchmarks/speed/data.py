"""A batch of windows: one gather, against a plain per-item dataset in a DataLoader; and its part of a training step."""

from collections.abc import Callable
from functools import partial
from itertools import chain, count, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from dforce.benchmarks.speed.harness import Timings, Way, median_row, race
from dforce.benchmarks.speed.sizes import ACTION, OBSERVATION, Sizes, random_batch
from dforce.benchmarks.speed.train_step import fit_stepper, objective
from dforce.data.episodes import Episodes, pack
from dforce.data.normalize import Affine
from dforce.data.windows import Windows
from dforce.train.precision import choose

TASK = "batch of windows"
DEFAULT_WIDTH = 256  # of the network whose training step the share is taken of


def random_episodes(sizes: Sizes) -> Episodes:
    """Standard normal observations and actions, as many as the maze data has."""
    rng = np.random.default_rng(0)
    shape = sizes.episodes, sizes.episode_steps
    observations = rng.standard_normal((shape[0], shape[1] + 1, OBSERVATION), dtype=np.float32)
    actions = rng.standard_normal((*shape, ACTION), dtype=np.float32)
    return pack(list(observations), list(actions), list(np.zeros(shape, dtype=np.float32)))


class WindowDataset(Dataset):
    """A plain per-item data set: the windows of the chosen episodes by number, each cut from its normalised episode."""

    def __init__(self, episodes: Episodes, chosen: np.ndarray, normalizer: Affine, *, horizon: int, stack: int):
        self.horizon, self.stack = horizon, stack
        observation = normalizer.part(ACTION, ACTION + OBSERVATION)
        self.tokens, self.starts, self.places = [], [], []
        for number, e in enumerate(chosen):
            seen, done, _ = episodes.episode(int(e))
            self.tokens.append(normalizer.normalize(torch.from_numpy(np.concatenate([done, seen[1:]], 1))))
            self.starts.append(observation.normalize(torch.from_numpy(seen)))
            self.places += [(number, offset) for offset in range(len(done) - horizon + 1)]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """x [T, stack * (A + O)], start [O]."""
        episode, offset = self.places[index]
        x = self.tokens[episode][offset:offset + self.horizon]
        return x.reshape(self.horizon // self.stack, -1), self.starts[episode][offset]


def sources(sizes: Sizes) -> tuple[Windows, WindowDataset]:
    """`Windows` and the plain data set, with the same windows under the same numbers."""
    shape: dict[str, Any] = {"horizon": sizes.tokens * sizes.stack, "stack": sizes.stack}
    episodes = random_episodes(sizes)
    windows = Windows(episodes, batch=sizes.train_batch, **shape)
    return windows, WindowDataset(episodes, windows.train_episodes, windows.normalizer, **shape)


def data_races(sizes: Sizes) -> list[Callable[[], Timings]]:
    """One race: batches of a plain DataLoader against `Windows.batch_at`."""
    return [partial(_one, sizes)]


def _one(sizes: Sizes) -> Timings:
    """Times of a batch, and its share of a training step of the default network in the precision that `fit` chooses."""
    windows, dataset = sources(sizes)
    index = torch.arange(sizes.train_batch) * (len(windows) // sizes.train_batch)
    loader, step = DataLoader(dataset, sizes.train_batch, shuffle=True, drop_last=True), count()
    endless = chain.from_iterable(repeat(loader))
    precision = choose("auto", sizes.device).name
    width = DEFAULT_WIDTH if DEFAULT_WIDTH in sizes.widths else sizes.widths[0]
    train = fit_stepper(objective(sizes, width, once_a_token=False), random_batch(sizes, sizes.train_batch), precision)
    ways = [Way("DataLoader over a per-item dataset", lambda: next(endless),
                result=lambda: default_collate([dataset[i] for i in index.tolist()])),
            Way("ours, batch_at", lambda: windows.batch_at(next(step)), result=_gathered(windows, index))]
    variant = {"windows": len(windows), "batch": sizes.train_batch, "horizon": sizes.tokens * sizes.stack}
    raced = race(ways, rounds=5 * sizes.rounds, seconds=sizes.seconds)
    training = race([Way("training step", train, result=lambda: [])], rounds=sizes.rounds, seconds=sizes.seconds)
    spent = float(np.median(training.seconds["training step"]))
    measured = raced.measured(TASK, variant)
    return measured._replace(rows=measured.rows + [
        median_row(TASK, name, "share of a training step", seconds / spent, variant=variant,
                   unit=f"fraction, width {width} in {precision}", higher=False)
        for name, seconds in raced.seconds.items()])


def _gathered(windows: Windows, index: Tensor) -> Callable[[], list[Tensor]]:
    def gather() -> list[Tensor]:
        batch = windows.gather(index)
        return [batch.x, batch.cond["static"]["start"]]
    return gather
