"""Whole episodes as token sequences, for policies that remember: a window that begins anywhere has lost what came
before. Batch s is a function of (seed, split, s) and of nothing else."""

import math
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dforce.data.batch import Batch
from dforce.data.draws import TRAIN, VAL, philox_uniform, shard_count, shard_rows, split_episodes
from dforce.data.episodes import Episodes, joined_ranges
from dforce.data.normalize import Affine, require_finite
from dforce.data.token_layout import KIND, TokenLayout, parts_of


class WholeEpisodes:
    """Sequences of observation and action tokens in turn, each from the beginning of an episode to its end.

    tokens: their `TokenLayout`. turn: tokens from one action token to the next.
    event_shape, layout, normalizer (Affine over O + A), virtual_shards: as of `Windows`.
    Sequences are as long as the longest episode. Others are padded by standing still: their last observation and
    action again; mask is False on padding. Where the data say that episodes end with a tail of rest, `hold` repeats
    the observations of its last half, to and fro: one observation again and again has a noise that stands still, too.
    """

    def __init__(self, episodes: Episodes, *, chunk: int, batch: int = 16, seed: int = 0, hold: int = 0,
                 cut: float = 0.0, window: int | None = None, first: bool = False, stride: int | None = None,
                 past: int = 0, limits: bool = False, floor: float = 0.01, normalizer: Affine | None = None,
                 held_out: float = 0.02, split: Literal["train", "val"] = "train", virtual_shards: int = 8):
        """chunk: actions of a token. batch: sequences in a batch.

        hold: environment steps that standing still counts as data behind an episode's end, so that a policy learns to
            stop; negative: so many of its last steps are left out.
        cut: share of action tokens that are cut short, to 1 .. chunk - 1 actions; the next observation then comes
            sooner. For policies that do not execute all that they plan.
        window: None, or a number of observations: sequences of so many, from anywhere, for policies without memory.
        first: cond["static"]["first"] tells the episode's first observation.
        stride: None, or environment steps from one observation to the next. Action tokens are then plans that overlap:
            they alone are learnt, and a window has that of its last observation only. An episode is continued before
            its beginning by its first observation and action.
        past: actions of a plan that come before its observation; for a stride.
        limits: numbers are normalised by the data's least and largest value, to -1..1, not by mean and deviation.
        floor: least standard deviation that a column is normalised by, as a share of the largest of its part: what
            hardly moves carries traces of a simulator's past.
        """
        self.tokens = TokenLayout(parts_of(episodes.names()[0]), episodes.actions.shape[1], chunk)
        self.batch, self.seed, self.cut, self.window, self.first, self.split = batch, seed, cut, window, first, split
        self.stride, self.past = stride, past
        self.turn = len(self.tokens.parts) * window + 1 if stride and window else self.tokens.cycle
        self._check(episodes)
        self.virtual_shards = shard_count(batch, virtual_shards)
        train, val = split_episodes(len(episodes), held_out, seed)
        self.train_episodes, self.val_episodes = train, val
        if not len(chosen := train if split == "train" else val):
            raise ValueError(f"no episode is held out: {len(episodes)} episode(s), held_out={held_out}")
        self.normalizer = normalizer or self._fitted(episodes, floor, limits)
        self._pack(episodes, chosen, hold)
        observation, action = episodes.names()
        about: dict[str, Any] = {key: episodes.about[key] for key in ("dataset", "env", "dt") if key in episodes.about}
        self.event_shape = (self.tokens.width,)
        self.layout: dict[str, Any] = {
            "kind": "policy", "tokens": asdict(self.tokens), "names": [*observation, *action], "hold": hold, "cut": cut,
            "window": window, "first": first, "event_shape": [self.tokens.width], "token": {KIND: self.tokens.cycle},
            "static": {"first": len(observation)} if first else {}, **about,
            **({"stride": stride, "past": past} if stride else {})}

    def __len__(self) -> int:
        return len(self._real)

    def batch_at(self, step: int, *, shards: tuple[int, int] | None = None) -> Batch:
        """Batch number `step`, or the rows of it in virtual shards lo..hi-1 (`shards=(lo, hi)`)."""
        rows = shard_rows(shards, self.virtual_shards, self.batch)
        stream = TRAIN if self.split == "train" else VAL
        draws = philox_uniform(self.batch * (self.cycles + 2), seed=self.seed, stream=stream, step=step)
        draws = draws.reshape(self.batch, -1)[rows]
        episode = (draws[:, 0] * len(self)).astype(np.int64)
        begin = np.zeros(len(rows), dtype=np.int64)
        if self.window is not None:
            early = (self.window - 1) * self.stride if self.stride else 0
            span = self.window * (self.stride or self.tokens.chunk)
            begin = (draws[:, 1] * np.maximum(self._real[episode] - span + early + 1, 1)).astype(int) - early
        return self.gather(torch.from_numpy(episode), torch.from_numpy(begin), torch.from_numpy(draws[:, 2:]))

    def gather(self, episode: Tensor, begin: Tensor, draws: Tensor) -> Batch:
        """Sequences of episodes [B] from step `begin` [B] on; draws: [B, cycles] in [0, 1), which tokens are cut."""
        chunk = self.tokens.chunk
        shorter = 1 + (draws / max(self.cut, 1e-9) * (chunk - 1)).long()
        count = torch.where(draws < self.cut, shorter, chunk)
        apart = torch.full_like(count, self.stride) if self.stride else count
        start = begin[:, None] + apart.cumsum(1) - apart                                   # step of each observation
        real, last = torch.from_numpy(self._real)[episode][:, None], self._actions.shape[1] - 1
        step = (start[..., None] - self.past + torch.arange(chunk)).clamp(0, last)
        x, kind = self.tokens.sequence(self._observations[episode[:, None], start.clamp(0, last + 1)],
                                       self._actions[episode[:, None, None], step], count)
        seen, done = start <= real, start + apart <= real
        mask = torch.stack([*[seen & (not self.stride)] * len(self.tokens.parts), done], 2).flatten(1)
        if self.stride:
            mask = mask[..., None] & (torch.arange(self.tokens.width) < chunk * self.tokens.action)
            if self.window:
                place = torch.arange(x.shape[1])
                kept = (place % self.tokens.cycle < len(self.tokens.parts)) | (place == place[-1])
                x, kind, mask = x[:, kept], kind[:, kept], mask[:, kept]
        static = {"first": self._observations[episode, 0]} if self.first else {}
        return Batch(x, mask, {"token": {KIND: kind}, "static": static}, torch.ones(len(episode), dtype=torch.bool))

    def _check(self, episodes: Episodes) -> None:
        if self.batch < 1 or not 0 <= self.cut < 1 or self.window is not None and self.window < 1:
            raise ValueError(f"want batch >= 1, cut in [0, 1) and window >= 1 or None, got batch={self.batch}, "
                             f"cut={self.cut}, window={self.window}")
        if self.cut and self.tokens.chunk == 1:
            raise ValueError("a chunk of one action cannot be cut short: cut=0, or a longer chunk")
        if self.stride is None and self.past or self.stride and (self.cut or not 0 <= self.past < self.tokens.chunk):
            raise ValueError(f"plans that overlap take a stride, cut=0 and a past shorter than the chunk of "
                             f"{self.tokens.chunk}, got stride={self.stride}, cut={self.cut}, past={self.past}")
        observation, action = episodes.names()
        require_finite(episodes.actions, lengths=episodes.lengths, names=action, kind="actions")
        require_finite(episodes.observations, lengths=episodes.lengths + 1, names=observation, kind="observations")

    def _fitted(self, episodes: Episodes, floor: float, limits: bool) -> Affine:
        """Centres and scales of the training episodes' observations and actions, the latter floored part by part."""
        names, chosen = episodes.names(), self.train_episodes
        begin, step, length = (each[chosen] for each in (episodes.first_observation, episodes.first_step,
                                                         episodes.lengths))
        fit = Affine.fit_limits if limits else Affine.fit
        observed = fit(episodes.observations[joined_ranges(begin, begin + length + 1)], names=names[0])
        acted = fit(episodes.actions[joined_ranges(step, step + length)], names=names[1])
        stds = [*(observed.std[columns] for columns in self.tokens.columns.values()), acted.std]
        return Affine(torch.cat([observed.mean, acted.mean]),
                      torch.cat([std.clamp(min=floor * float(std.max())) for std in stds]))

    def _pack(self, episodes: Episodes, chosen: np.ndarray, hold: int) -> None:
        """Normalised observations [N, S + 1, O] and actions [N, S, A], and the steps that are data, [N]."""
        real = episodes.lengths[chosen] + hold
        if real.min() < 1:
            raise ValueError(f"hold={hold} leaves nothing of episodes of {int(episodes.lengths[chosen].min())} steps")
        chunk, steps = self.tokens.chunk, int(real.max())
        if steps < chunk:
            held = f" with hold={hold}" if hold else ""
            raise ValueError(f"chunk={chunk}: the longest episode has {steps} steps{held}, which is no whole chunk")
        self.cycles = self.window or math.ceil(steps / (self.stride or chunk * (1 - self.cut / 2)))
        self._real = real.astype(np.int64)
        ends, step = np.minimum(real, episodes.lengths[chosen])[:, None], np.arange(steps + 1)
        back = to_and_fro(step - ends, _rest(episodes) if hold > 0 else 0)
        width = episodes.observations.shape[1]
        packed = []
        for values, first, extra, columns in (
                (episodes.observations, episodes.first_observation, 0, (0, width)),
                (episodes.actions, episodes.first_step, 1, (width, width + self.tokens.action))):
            rows = first[chosen][:, None] + np.minimum(step[:steps + 1 - extra], ends - extra) - (0 if extra else back)
            physical = torch.from_numpy(values[rows].astype(np.float32))
            packed.append(self.normalizer.part(*columns).cpu().normalize(physical))
        self._observations, self._actions = packed


def to_and_fro(beyond: np.ndarray, rest: int) -> np.ndarray:
    """How far back to look for an observation `beyond` the last one: 0, 1, ... rest, rest - 1, ... 0, 1, ..."""
    return rest - np.abs(rest - np.maximum(beyond, 0) % max(2 * rest, 1))


def _rest(episodes: Episodes) -> int:
    """Steps at the end of every episode that are surely rest: half of the tail with which they were generated."""
    tail = episodes.about.get("tail")
    return min(tail // 2, int(episodes.lengths.min())) if isinstance(tail, int) and tail > 0 else 0
