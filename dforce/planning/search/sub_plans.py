"""Partial plans: their first sub-plans are finished; made longer and simulated to the end in batches, for `mctd`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.core.denoiser import Cond
from dforce.core.matrix import pyramid
from dforce.core.noise import NoiseSource
from dforce.core.sample import generate
from dforce.core.tree import State, map_state
from dforce.planning.planner import DiffusionPlanner

PRIME = 1_000_003  # salts of a tree's nodes are polynomials in it, so that the first child of the first child has 0


class Partial(NamedTuple):
    """A plan whose first tokens are finished: the content of a node of the tree."""

    episode: int   # row of the starts and goals
    salt: int      # of its noise
    factor: float  # of the guidance of its last sub-plan
    done: Tensor   # [P, *E], the finished tokens
    state: State   # the denoiser's, past them (batch of 1; None for one that cannot absorb)


def child(parent: Partial, number: int, factor: float) -> Partial:
    """The part that `parent` is about to be, as its child of that number, the next sub-plan guided by `factor`."""
    return parent._replace(salt=(parent.salt * PRIME + number) % 2**62, factor=factor)


class BranchNoise:
    """The noise of partial plans, a function of the episode ([B] of `count`) and the way down the tree (salt: [B])."""

    def __init__(self, noise: NoiseSource, salt: Tensor, episode: Tensor, count: int, *, token: int = 0):
        self.noise, self.salt, self.episode, self.count, self.token = noise, salt, episode, count, token

    def at(self, token: int) -> BranchNoise:
        """The same noise for a sequence that begins at `token` of the plan."""
        return BranchNoise(self.noise, self.salt, self.episode, self.count, token=token)

    def __call__(self, row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
                 sample: Tensor | None = None) -> Tensor:
        sample = torch.arange(len(like), device=like.device) if sample is None else sample
        draw, plan = sample // len(self.salt), sample % len(self.salt)  # draws of Monte Carlo guidance: n B rows
        return self.noise(row, token + self.token, like, salt=salt + PRIME * self.salt[plan][:, None],
                          sample=draw * self.count + self.episode[plan])


class Grower:
    """Makes partial plans longer, many at once, for one batch of starts obs [N, O] and goals [N, G].

    planner: says how sub-plans are denoised. jumpy: steps and delay of the simulations. episode: [N], whose noise.
    """

    def __init__(self, planner: DiffusionPlanner, obs: np.ndarray, goal: np.ndarray, remaining: int,
                 noise: NoiseSource, *, sub_plans: int, jumpy: tuple[int, int], episode: np.ndarray | None = None):
        x, cond, self.goal = planner.start(obs, goal, remaining, noise)
        self.planner, self.noise, self.like, self.start = planner, noise, x, cond["static"]["start"]
        self.tokens, self.jumpy = x.shape[1], jumpy
        self.length = -(-self.tokens // sub_plans)
        self.number = torch.arange(len(x)) if episode is None else torch.as_tensor(episode)
        self.number = self.number.to(x.device)

    def roots(self) -> list[Partial]:
        """Plans of which nothing is finished, one an episode."""
        causal, rows = self.planner.denoiser.causal, torch.arange(len(self.like), device=self.like.device)
        with torch.no_grad():
            state = self.planner.denoiser.init_state(len(rows), self._cond(rows)) if causal else None
        return [Partial(n, 0, 0.0, self.like[n, :0], _row(state, n)) for n in range(len(rows))]

    def grow(self, parts: Sequence[Partial]) -> tuple[list[Partial], Tensor]:
        """The parts one sub-plan longer, under their own salts and factors, and their simulations: plans [B, T, *E]."""
        groups: dict[tuple[int, bool], list[int]] = {}
        for i, part in enumerate(parts):
            groups.setdefault((len(part.done), self.planner.scale * part.factor > 0), []).append(i)
        grown, plans = list(parts), self.like.new_empty(len(parts), *self.like.shape[1:])
        for (first, guided), members in groups.items():
            longer, plans[members] = self._group([parts[i] for i in members], first, guided)
            for i, part in zip(members, longer, strict=True):
                grown[i] = part
        return grown, plans

    def _group(self, parts: list[Partial], first: int, guided: bool) -> tuple[list[Partial], Tensor]:
        """`grow` for parts of `first` finished tokens, all of them guided or none."""
        rows = torch.tensor([part.episode for part in parts], device=self.like.device)
        salt = torch.tensor([part.salt for part in parts], device=rows.device)
        noise = BranchNoise(self.noise, salt, self.number[rows], len(self.number))
        guide = self._guide(rows, noise, [part.factor for part in parts] if guided else None)
        ahead = noise(-1, torch.arange(first, self.tokens, device=rows.device), self.like[rows, first:])
        x = torch.cat([torch.stack([part.done for part in parts]), ahead], 1)
        state, cond = map_state(lambda *leaf: torch.cat(leaf), *(part.state for part in parts)), self._cond(rows)
        now, rest = slice(first, min(first + self.length, self.tokens)), slice(first + self.length, self.tokens)
        x = self._denoise(guide, x, state, cond, now, noise, (self.planner.steps, self.planner.delay))
        if self.planner.denoiser.causal:
            clean = torch.zeros(x[:, now].shape[:2], dtype=torch.long, device=x.device)
            state = self.planner.denoiser.absorb(x[:, now], clean, state, cond)
        grown = [part._replace(done=x[i, :now.stop], state=_row(state, i)) for i, part in enumerate(parts)]
        if now.stop < self.tokens:
            x = self._denoise(guide, x, state, cond, rest, noise, self.jumpy)
        return grown, x

    def _guide(self, rows: Tensor, noise: BranchNoise, factors: list[float] | None) -> Any:
        if factors is None:
            return self.planner.with_(scale=0.0).guide(self.goal[rows], noise, self.tokens)
        guide: Any = self.planner.with_(scale=1.0).guide(self.goal[rows], noise, self.tokens)
        # One scale a plan: it meets gradients [B, T, *E], or weights [.., B, T] where there are several draws.
        scale = self.planner.scale * torch.tensor(factors, device=rows.device)
        guide.scale = scale.view(-1, *(1,) * (self.like.ndim - 1 if self.planner.draws == 1 else 1))
        return guide

    def _denoise(self, guide: Any, x: Tensor, state: State, cond: Cond, now: slice, noise: BranchNoise,
                 pace: tuple[int, int]) -> Tensor:
        """x [B, T, *E] with the tokens `now` denoised in pace = (steps, delay); those behind stay noise."""
        causal, schedule = guide.causal, self.planner.schedule
        begin = now.start if causal else 0                                      # what is before is in the state
        end = now.stop if causal and not guide.global_x0 else self.tokens
        if causal and guide.global_x0:
            state = {"inner": state, "past": x[:, :begin]}
        levels = pyramid(schedule.grid(pace[0], self.planner.spacing), now.stop - now.start, pace[1])  # type: ignore[arg-type]
        matrix = levels.new_full((len(levels), end - begin), schedule.levels)
        matrix[:, :now.start - begin], matrix[:, now.start - begin:now.stop - begin] = 0, levels
        shown = generate(guide, schedule, matrix, x[:, begin:end], state=state if causal else None, cond=cond,
                         eta=self.planner.eta, order=self.planner.order, noise=noise.at(begin))
        return torch.cat([x[:, :begin], shown, x[:, end:]], 1)

    def _cond(self, rows: Tensor) -> Cond:
        return {"static": {"start": self.start[rows]}}


def _row(state: State, i: int) -> State:
    return map_state(lambda leaf: leaf[i:i + 1], state)
