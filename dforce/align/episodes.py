"""Episodes of a policy as denoising runs: every plan is a run that begins in the memory that the policy had then."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dforce.align.advantage import clip_advantage
from dforce.align.on_policy import ASK, SAMPLE, OnPolicy, Samples
from dforce.align.trace import Trace, kl, record
from dforce.core.denoiser import Cond, Denoiser
from dforce.core.noise import Noise, NoiseSource, seed_of, shifted
from dforce.core.schedule import Schedule
from dforce.core.tree import State, map_state, select
from dforce.policy.evaluation import steps_of
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.protocol import check_actions, stacked_observations
from dforce.report.statistics import ERROR, Z95


class PlayedEpisodes(NamedTuple):
    """Episodes that were played, R plans having been made in them."""

    returns: Tensor       # [N] float64, sums of rewards
    success: np.ndarray   # [N] bool, whether `info` ever said so
    episode: Tensor       # [R] of each plan
    trace: Trace | None   # of the plans [R], where they were recorded


class Recorder:
    """Samples action tokens with noise in every step, and keeps the runs; it takes the place of a policy's `descend`.

    levels: [S + 1], falling. eta: as of `dforce.sample`. noise: of the steps, a run of its own for every call.
    """

    def __init__(self, schedule: Schedule, levels: Tensor, *, eta: float, noise: NoiseSource):
        self.schedule, self.matrix, self.eta, self.noise = schedule, levels[:, None], eta, noise
        self.traces: list[Trace] = []

    def __call__(self, denoiser: Denoiser, x: Tensor, state: State, cond: Cond | None = None) -> Tensor:
        self.traces.append(record(denoiser, self.schedule, self.matrix, x, state=state, cond=cond, eta=self.eta,
                                  noise=shifted(self.noise, tokens=len(self.traces))))
        return self.traces[-1].x[:, -1]


class EpisodePlayer:
    """Plays episodes of a policy, `copies` side by side; it changes memory and speed, not what comes out.

    make_env: () -> an environment as gymnasium has them. levels, eta: as of `Recorder`, None plays as the policy does.
    """

    def __init__(self, policy: ForcingPolicy, make_env: Callable[[], Any], *, copies: int,
                 levels: Tensor | None = None, eta: float = 1.0):
        self.policy, self.make_env, self.copies, self.levels, self.eta = policy, make_env, copies, levels, eta
        self._envs: list[Any] = []
        self._descend, self._noise = policy.descend, policy.noise

    def __call__(self, seeds: Sequence[int], noise: NoiseSource,
                 advance: Callable[[float], object] | None = None) -> PlayedEpisodes:
        """Episodes from the starts `seeds` [N]. noise: of plans that are recorded; the row of an episode counts."""
        parts = []
        for begin in range(0, len(seeds), self.copies):
            chosen = seeds[begin:begin + self.copies]
            parts.append(self._together(chosen, shifted(noise, samples=begin)))
            if advance is not None:
                advance(len(chosen) / len(seeds))
        offsets = [self.copies * number for number in range(len(parts))]
        traces = [part.trace for part in parts if part.trace is not None]
        return PlayedEpisodes(torch.cat([part.returns for part in parts]),
                              np.concatenate([part.success for part in parts]),
                              torch.cat([part.episode + offset for part, offset in zip(parts, offsets, strict=True)]),
                              map_state(lambda *part: torch.cat(part), *traces) if traces else None)

    def _together(self, seeds: Sequence[int], noise: NoiseSource) -> PlayedEpisodes:
        self._envs += [self.make_env() for _ in range(len(seeds) - len(self._envs))]
        if self.levels is None:
            return self._played(seeds, None)
        policy, recorder = self.policy, Recorder(self.policy.schedule, self.levels, eta=self.eta, noise=noise)
        policy.descend, policy.noise = recorder, by_row(noise)
        try:
            return self._played(seeds, recorder)
        finally:
            policy.descend, policy.noise = self._descend, self._noise

    def _played(self, seeds: Sequence[int], recorder: Recorder | None) -> PlayedEpisodes:
        envs, policy = self._envs[:len(seeds)], self.policy
        observations = [env.reset(seed=int(seed))[0] for env, seed in zip(envs, seeds, strict=True)]
        over, success = np.zeros(len(envs), dtype=bool), np.zeros(len(envs), dtype=bool)
        returns, state, planned = np.zeros(len(envs)), policy.reset(len(envs)), []
        while not over.all():
            before = len(recorder.traces) if recorder else 0
            actions, state = policy.act(stacked_observations(observations), state)
            check_actions(actions, len(envs))
            if recorder and len(recorder.traces) > before:
                planned.append(torch.from_numpy(np.flatnonzero(~over)))
            for row in np.flatnonzero(~over).tolist():
                for observation, reward, terminated, truncated, info in steps_of(envs[row], actions[row]):
                    observations[row] = observation
                    returns[row] += float(reward)
                    success[row] |= bool(info.get("success", False))
                    over[row] = terminated or truncated
        episode = torch.cat(planned) if planned else torch.zeros(0, dtype=torch.long)
        kept = [select(trace, rows) for trace, rows in zip(recorder.traces, planned, strict=True)] if recorder else []
        return PlayedEpisodes(torch.from_numpy(returns), success, episode,
                              map_state(lambda *part: torch.cat(part), *kept) if kept else None)


def by_row(noise: NoiseSource) -> NoiseSource:
    """`noise` by the row of an episode, where a policy asks by its first observation: one start, several episodes."""
    def drawn(row: Tensor | int, token: Tensor | int, like: Tensor, *, salt: Tensor | int = 0,
              sample: Tensor | None = None) -> Tensor:
        return noise(row, token, like, salt=salt)
    return drawn


class EpisodesOnPolicy(OnPolicy):
    """`OnPolicy` of episodes: `samples` of them an epoch, `group` from each start; all plans of one have its return.

    reward: an `EpisodePlayer` that records. The metadata of what is asked for are the seeds of the starts. Rows that
    cannot be dealt evenly into the updates, fewer than `updates`, are left out.
    """

    def draw(self, epoch: int) -> Samples:
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch, ASK))
        query = self.ask(self.samples // self.group, generator)
        group = torch.arange(len(query.prompts)).repeat_interleave(self.group)
        prompts, seeds = ([values[i] for i in group.tolist()] for values in (query.prompts, query.metadata or ()))
        player: Any = self.reward
        played: PlayedEpisodes = player(seeds, Noise(seed_of(self.seed, epoch, SAMPLE)), self.sampler.advance)
        advantage = self.credit(played.returns.clone(), prompts, group)
        if self.limit is not None:
            advantage = clip_advantage(advantage, self.limit)
        rows = played.episode[:len(played.episode) - len(played.episode) % self.updates]
        trace = select(played.trace, torch.arange(len(rows)))
        return Samples(trace.x[:, -1], trace.cond, played.returns[rows], advantage[rows], group[rows], trace)


class EpisodeMonitor:
    """look() -> return, success and KL to a base [nats of an episode] from the same starts in the same noise.

    player: of the policy, recording. kl_max of a run asks for `sampler`.
    """

    shown = None  # no images

    def __init__(self, player: EpisodePlayer, base: Denoiser, seeds: Sequence[int], *, sampler: Any, seed: int = 0):
        self.player, self.base, self.seeds, self.sampler, self.noise = player, base, seeds, sampler, Noise(seed)

    @torch.no_grad()
    def look(self, advance: Callable[[float], object] | None = None) -> dict[str, float]:
        """The means; "return_error" is half the 95% interval. advance: told the shares of the work, 1 in all."""
        played, policy = self.player(self.seeds, self.noise, advance), self.player.policy
        nats = kl(played.trace, policy.denoiser, self.base, policy.schedule)  # type: ignore[arg-type]
        return {"return": float(played.returns.mean()), "success": float(played.success.mean()),
                f"return{ERROR}": float(Z95 * played.returns.std() / len(self.seeds) ** 0.5),
                "kl": float(nats.sum()) / len(self.seeds)}
