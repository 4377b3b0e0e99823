"""Windows of fixed length over episodes of any length: batch s is a function of (seed, split, s) and of nothing else.

Raw token t is (a_t, o_{t+1}): an action belongs with the observation that it led to; o_0 is in cond["static"]["start"].
All tokens are normalised and packed once. A window is a row of a strided view of them, so that a batch is one
`index_select`.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dforce.data.batch import Batch
from dforce.data.draws import SPLIT, TRAIN, VAL, check_window, philox_uniform, shard_count, shard_rows, split_episodes
from dforce.data.episodes import Episodes, joined_ranges
from dforce.data.normalize import Affine, float32_offset, require_finite


class Windows:
    """Windows of `horizon` environment steps, `stack` consecutive raw tokens to a token.

    event_shape: (stack * (A + O),). layout: what the numbers of a token mean, JSON-able. normalizer: Affine over A + O.
    len(windows): number of windows. virtual_shards: number of equal parts of a batch, of which `batch_at` can return
    some; the largest divisor of `batch` up to the argument, so that it does not depend on the number of processes.
    Episodes shorter than the horizon are padded with their last raw token, mask False; those shorter than `stack` are
    left out. sequential: row b of batch s + 1 continues row b of batch s, through all episodes in an order drawn from
    the seed; `first` is True where an episode begins (and in batch 0); steps after its last whole token are left out.
    """

    def __init__(self, episodes: Episodes, *, horizon: int, stack: int = 1, batch: int = 128, seed: int = 0,
                 normalizer: Affine | None = None, held_out: float = 0.02, split: Literal["train", "val"] = "train",
                 virtual_shards: int = 8, sequential: bool = False, device: torch.device | str = "cpu"):
        """horizon: a multiple of stack. normalizer: None fits one to the training episodes, for both splits.

        held_out: share of the episodes, at least one if there are two, that are in `split="val"` and not in "train".
        """
        check_window(split, horizon=horizon, stack=stack, batch=batch, virtual_shards=virtual_shards)
        longest = int(episodes.lengths.max())
        if horizon > longest:
            fits = longest // stack * stack
            raise ValueError(f"horizon {horizon} is longer than every episode, the longest has {longest} steps: "
                             + (f"take horizon={fits} or less" if fits else f"stack={stack} does not fit, either"))
        self.horizon, self.stack, self.batch, self.seed, self.sequential = horizon, stack, batch, seed, sequential
        self.virtual_shards = shard_count(batch, virtual_shards)
        self.split = split
        self.train_episodes, self.val_episodes = split_episodes(len(episodes), held_out, seed)
        chosen = self.train_episodes if split == "train" else self.val_episodes
        if not len(chosen):
            raise ValueError(f"no episode is held out: {len(episodes)} episode(s), held_out={held_out}; two or more "
                             "are needed (a long one can be cut: read_d4rl(path, max_length=10_000))")
        tokens, starts, offset = _tokens(episodes)
        first, lengths = episodes.first_step[self.train_episodes], episodes.lengths[self.train_episodes]
        observation, action = episodes.names()
        self.normalizer = normalizer or Affine.fit(tokens[joined_ranges(first, first + lengths)],
                                                   names=[*action, *observation]).shifted(-offset)
        self._set_layout(episodes)
        self._pack(episodes, chosen, tokens, starts, offset, device)

    def __len__(self) -> int:
        return len(self._window)

    def batch_at(self, step: int, *, shards: tuple[int, int] | None = None) -> Batch:
        """Batch number `step`, or the rows of it in virtual shards lo..hi-1 (`shards=(lo, hi)`).

        x: [B, T, stack * (A + O)] normalised. cond["static"]["start"]: [B, O], the normalised observation before x.
        """
        rows = shard_rows(shards, self.virtual_shards, self.batch)
        if self.sequential:
            begin = rows * len(self) // self.batch
            first = None if step else torch.ones(len(rows)).bool()
            return self.gather(torch.from_numpy((begin + step) % len(self)), first=first)
        stream = TRAIN if self.split == "train" else VAL
        draws = philox_uniform(self.batch, seed=self.seed, stream=stream, step=step)[rows]
        return self.gather(torch.from_numpy((draws * len(self)).astype(np.int64)))

    def gather(self, index: Tensor, *, first: Tensor | None = None) -> Batch:
        """Windows by number. index: [B] in 0..len(self)-1. first: [B] bool, of the batch; None for the windows' own."""
        index = index.to(self._window.device)
        rows = self._window.index_select(0, index)
        size, tokens = len(rows), self.horizon // self.stack
        x = self._x.index_select(0, rows).view(size, tokens, -1)
        # a token is without padding where the window's real steps reach to its end
        ends = torch.arange(self.stack, self.horizon + 1, self.stack, device=index.device)
        mask = ends <= self._real.index_select(0, index)[:, None]
        start = self._start.index_select(0, rows)
        if first is None:
            first = self._first.index_select(0, index) if self.sequential else torch.ones(size, dtype=torch.bool)
        return Batch(x, mask, {"static": {"start": start}}, first.to(x.device))

    def _set_layout(self, episodes: Episodes) -> None:
        observation, action = episodes.names()
        width = len(action) + len(observation)
        if self.normalizer.width != width:
            raise ValueError(f"the normaliser has {self.normalizer.width} columns, actions and observations have "
                             f"{width}")
        self.event_shape = (self.stack * width,)
        kept = ("dataset", "env", "dt", "rows")
        about: dict[str, Any] = {key: episodes.about[key] for key in kept if key in episodes.about}
        self.layout: dict[str, Any] = {"stack": self.stack, "horizon": self.horizon, "action": [0, len(action)],
                                       "observation": [len(action), width], "names": [*action, *observation], **about}

    def _pack(self, episodes: Episodes, chosen: np.ndarray, tokens: np.ndarray, starts: np.ndarray,
              offset: np.ndarray, device: Any) -> None:
        """Puts normalised tokens of the chosen episodes into one array, padded to whole windows, and numbers those."""
        chosen = chosen[episodes.lengths[chosen] >= self.stack]
        if not len(chosen):
            raise ValueError(f"no {self.split} episode is as long as a token, {self.stack} steps: take a smaller "
                             "stack=")
        if self.sequential:
            draws = philox_uniform(len(chosen), seed=self.seed, stream=SPLIT, step=1)
            chosen = chosen[np.argsort(draws, kind="stable")]
        lengths, horizon = episodes.lengths[chosen], self.horizon
        count = (lengths - self.stack) // horizon + 1 if self.sequential else np.maximum(lengths - horizon, 0) + 1
        padded = count * horizon if self.sequential else np.maximum(lengths, horizon)
        begin = np.cumsum(padded) - padded
        within = np.arange(padded.sum()) - np.repeat(begin, padded)
        last = np.repeat(lengths - 1, padded)
        source = np.repeat(episodes.first_step[chosen], padded) + np.minimum(within, last)
        actions = episodes.actions.shape[1]
        normalizer = self.normalizer.part(0, tokens.shape[1]).cpu().shifted(offset)  # the caller's stays on its device
        x = normalizer.normalize(torch.from_numpy(tokens[source])).to(device)
        start = normalizer.part(actions, tokens.shape[1]).normalize(torch.from_numpy(starts[source]))
        views, width = len(x) - horizon + 1, x.shape[1]
        self._x = x.as_strided((views, horizon * width), (width, 1))
        self._start = start.to(device)
        number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)  # of the window in its episode
        offset = number * (horizon if self.sequential else 1)
        self._window = torch.from_numpy(np.repeat(begin, count) + offset).to(device)
        self._real = torch.from_numpy(np.minimum(np.repeat(lengths, count) - offset, horizon)).to(device)
        self._first = torch.from_numpy(number == 0).to(device)


def _tokens(episodes: Episodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Raw tokens (a_t, o_{t+1}) [N, A + O] and o_t [N, O], float32, and the `float32_offset` [A + O] taken off."""
    observation, action = episodes.names()
    if episodes.images:
        raise ValueError(f"plans are made of numbers, and the episodes have pictures of {', '.join(episodes.images)}: "
                         "train a policy (dforce imitate), or leave them out: dataclasses.replace(episodes, images={})")
    require_finite(episodes.actions, lengths=episodes.lengths, names=action, kind="actions")
    require_finite(episodes.observations, lengths=episodes.lengths + 1, names=observation, kind="observations")
    offsets = float32_offset(episodes.actions), float32_offset(episodes.observations)
    actions, observations = (values - offset if offset.any() else values for values, offset in
                             zip((episodes.actions, episodes.observations), offsets, strict=True))
    before = joined_ranges(episodes.first_observation, episodes.first_observation + episodes.lengths)
    tokens = np.concatenate([actions, observations[before + 1]], 1, dtype=np.float32, casting="same_kind")
    return tokens, observations[before].astype(np.float32), np.concatenate(offsets)
