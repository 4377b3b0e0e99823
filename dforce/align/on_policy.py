"""On-policy batches for `dforce.fit`: a function of the step that samples from the policy as it is then."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dforce.align.advantage import Credit, clip_advantage
from dforce.align.cells import cells_of
from dforce.align.policy_check import TOLERANCE, check_on_policy
from dforce.align.rewards.protocol import Reward, ask_reward
from dforce.align.trace import Trace, record, running_in
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise, NoiseSource, members_of, permutation, seed_of
from dforce.core.sample import generate, sample
from dforce.core.schedule import Schedule
from dforce.core.step import Std
from dforce.core.tree import leaves, map_state, private, select
from dforce.guidance.reporting import reporting

ASK, ORDER, SAMPLE = 0, 1, 2  # streams of randomness
START_SALT = 1                # of the noise that runs begin in, beside that of their steps


class Query(NamedTuple):
    """Requests for n samples. prompts: hashable names, for rewards and statistics; cond: [n, ...] leaves."""

    prompts: Sequence[Any]
    cond: Cond | None = None
    metadata: Sequence[Any] | None = None


Ask = Callable[[int, torch.Generator], Query]  # (how many, randomness) -> what


class Samples(NamedTuple):
    """B samples with their rewards: the batch of every loss on samples."""

    x: Tensor            # [B, T, *E] final tokens
    cond: Cond | None
    reward: Tensor       # [B] float64
    advantage: Tensor    # [B] float64: whatever the credit made of the rewards
    group: Tensor        # [B] which prompt of the query each belongs to
    trace: Trace | None  # where the loss wants log-probabilities


class Sampler(NamedTuple):
    """How a policy samples: everything besides the weights that decides the law of its samples. shape: (T, *E).

    eta, std, min_std, order, autocast as in `dforce.sample` and `record`; rows: at most so many runs at a time.
    advance: told the shares of a call's work as they are done, 1 in all.
    """

    denoiser: Denoiser
    schedule: Schedule
    matrix: Tensor
    shape: tuple[int, ...]
    eta: float = 1.0
    std: Std | None = None
    min_std: float = 0.0
    order: int = 1
    autocast: torch.dtype | None = None
    rows: int | None = None
    advance: Callable[[float], object] | None = None

    def record(self, batch: int, cond: Cond | None, noise: NoiseSource, *, member: Tensor | None = None) -> Trace:
        """B runs kept as a trace. member: [B], runs that begin in the same noise have the same number."""
        denoiser = reporting(self.denoiser, self.matrix, batch, self.advance)
        parts = [record(denoiser, self.schedule, self.matrix, x, cond=given, noise=drawn, order=self.order,
                        eta=self.eta, std=self.std, min_std=self.min_std, autocast=self.autocast)
                 for x, given, drawn in self._parts(batch, cond, noise, member)]
        return map_state(lambda *part: torch.cat(part), *parts)

    @torch.no_grad()
    def tokens(self, batch: int, cond: Cond | None, noise: NoiseSource, *, member: Tensor | None = None) -> Tensor:
        """Only the tokens at the end of the runs, [B, T, *E], by the fast samplers and of any order."""
        done, denoiser = [], reporting(self.denoiser, self.matrix, batch, self.advance)
        for x, given, drawn in self._parts(batch, cond, noise, member):
            with running_in(self.autocast, x.device):
                if self.std is None and self.min_std == 0:
                    x = generate(denoiser, self.schedule, self.matrix, x, cond=given, noise=drawn, eta=self.eta,
                                 order=self.order)
                else:
                    *_, last = sample(denoiser, self.schedule, self.matrix, x, cond=given, noise=drawn,
                                      eta=self.eta, order=self.order, std=self.std, min_std=self.min_std)
                    x = last.x
            done.append(x)
        return torch.cat(done)

    def _parts(self, batch: int, cond: Cond | None, noise: NoiseSource, member: Tensor | None) -> Any:
        """Start [n, T, *E], conditioning and noise of every part: the same numbers however the batch is cut."""
        device = self.schedule.alpha.device
        like = torch.empty(batch, *self.shape, device=device)
        start = noise(0, torch.arange(self.shape[0], device=device), like, salt=START_SALT, sample=member)
        for members in torch.arange(batch, device=device).split(self.rows or batch):
            part = start if len(members) == batch else start[members]  # no second copy of what is wanted whole
            yield part, select(cond, members) if cond else None, members_of(noise, members, batch)


class OnPolicy:
    """batch_at(step) for `dforce.fit`: every `updates * passes` steps, `samples` new runs of the policy as it is then.

    reward: (decode(x), prompts, metadata) -> [B]. ask: what for; every answer is sampled `group` times in a row
    (same_start: from the same noise, as DanceGRPO does). credit: rewards -> advantages or weights, clipped to +-limit
    if given. traces: keep log-probabilities, for policy gradients. prepare: makes of the `Samples` of an epoch the rows
    that are dealt out (preference pairs), in random order, into `updates` batches, `passes` times. before(epoch) is
    called before an epoch samples (to move a reference).

    Before an epoch's first update `check_on_policy` replays `checked` steps, spread over runs and path, and raises
    OffPolicyError beyond `tolerance`; a reward that fails raises RewardError. All randomness is counted, (seed, epoch);
    an epoch's samples live in memory only, so a run resumes at the beginning of an epoch. `epochs` holds what was
    measured of each. Give `fit` weight_decay=0, which else pulls at the weights whatever the reward says, and
    decay="constant".
    """

    def __init__(self, sampler: Sampler, reward: Reward, ask: Ask, *, samples: int, credit: Credit, group: int = 1,
                 updates: int = 1, passes: int = 1, limit: float | None = None, traces: bool = True,
                 same_start: bool = False, decode: Callable[[Tensor], Tensor] | None = None,
                 prepare: Callable[[Samples], Any] | None = None, before: Callable[[int], Any] | None = None,
                 checked: int = 8, tolerance: float = TOLERANCE, seed: int = 0):
        if min(samples, group, updates, passes, checked) < 1 or samples % group:
            raise ValueError(f"samples, group, updates, passes and checked must be >= 1 and samples a multiple of "
                             f"group, got {samples}, {group}, {updates}, {passes}, {checked}")
        self.sampler, self.reward, self.ask, self.credit = sampler, reward, ask, credit
        self.samples, self.group, self.updates, self.passes = samples, group, updates, passes
        self.limit, self.traces, self.same_start, self.decode = limit, traces, same_start, decode
        self.prepare, self.before, self.checked, self.tolerance, self.seed = prepare, before, checked, tolerance, seed
        self.epochs: list[dict[str, float]] = []
        self._epoch = -1
        self._rows: Any = None
        self._order, self._turn = torch.arange(0), -1  # row i of the epoch's rows is the _order[i]-th that was made

    def __call__(self, step: int) -> Any:
        epoch, update = divmod(step, self.updates * self.passes)
        if epoch != self._epoch:
            if update:
                raise ValueError(f"step {step} is in the middle of an epoch of {self.updates * self.passes} updates, "
                                 f"whose samples are gone: resume at step {step - update}")
            self._begin(epoch)
        turn, part = divmod(update, self.updates)
        if turn != self._turn:
            self._shuffle(turn)
        size = len(self._order) // self.updates
        batch = map_state(lambda leaf: leaf[part * size:(part + 1) * size], self._rows)
        if update + 1 == self.updates * self.passes:
            self._rows, self._epoch = None, -1  # the optimiser steps without them
        return batch

    def draw(self, epoch: int) -> Samples:
        """The samples of an epoch, by the weights of now. Changes nothing but the credit's statistics."""
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, ASK))
        query = self.ask(self.samples // self.group, generator)
        if len(query.prompts) != self.samples // self.group:
            raise ValueError(f"asked for {self.samples // self.group} prompts, got {len(query.prompts)}")
        noise, device = Noise(seed_of(self.seed, epoch, SAMPLE)), self.sampler.schedule.alpha.device
        group = torch.arange(len(query.prompts), device=device).repeat_interleave(self.group)
        cond = select(map_state(lambda leaf: leaf.to(device), query.cond), group) if query.cond else None
        member = group if self.same_start else None
        trace = self.sampler.record(self.samples, cond, noise, member=member) if self.traces else None
        x = trace.x[:, -1] if trace else self.sampler.tokens(self.samples, cond, noise, member=member)
        prompts, metadata = ([values[i] for i in group.tolist()] if values is not None else None
                             for values in (query.prompts, query.metadata))
        reward = ask_reward(self.reward, self.decode(x.clone()) if self.decode else x, prompts or [], metadata,
                            where=f"epoch {epoch}")
        advantage = self.credit(reward.clone(), private(prompts or []), group.clone())
        if self.limit is not None:
            advantage = clip_advantage(advantage, self.limit)
        return Samples(x, cond, reward, advantage, group, trace)

    def _begin(self, epoch: int) -> None:
        if self.before is not None:
            self.before(epoch)
        samples = self.draw(epoch)
        metrics = {"epoch": float(epoch), "queries": float((epoch + 1) * self.samples),
                   "reward": float(samples.reward.mean()), "reward_std": float(samples.reward.std(correction=0))}
        if samples.trace is not None:
            run, step = (samples.trace.dims > 0).any(2).nonzero().unbind(1)
            some = torch.linspace(0, len(run) - 1, min(self.checked, len(run))).round().long().to(run.device)
            metrics["ratio_error"] = check_on_policy(
                cells_of(samples.trace, run[some], step[some]), self.sampler.denoiser, self.sampler.schedule,
                tolerance=self.tolerance, rows=self.sampler.rows, autocast=self.sampler.autocast).largest
        rows = self.prepare(samples) if self.prepare else samples
        count = len(leaves(rows)[0])
        if count % self.updates:
            raise ValueError(f"{count} rows cannot be dealt into {self.updates} batches: change samples or updates")
        self.epochs.append(metrics)
        self._rows, self._epoch, self._order, self._turn = rows, epoch, torch.arange(count), -1

    def _shuffle(self, turn: int) -> None:
        """Puts the epoch's rows in the order of one pass, so that batches are views: a trace is held once."""
        wanted = permutation(len(self._order), self.seed, self._epoch, ORDER, turn)
        self._rows = select(self._rows, self._order.argsort()[wanted].to(leaves(self._rows)[0].device))
        self._order, self._turn = wanted, turn
