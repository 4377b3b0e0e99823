"""How well a policy does: episodes of an environment, several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from dforce.core.tree import reset, select
from dforce.policy.protocol import Policy, check_actions, stacked_observations

BLOCK = 1_000_000  # seeds of episodes between one `seed` of an evaluation and the next; demonstrations have those of -1


class PolicyEpisode(NamedTuple):
    """One episode that was played."""

    seed: int  # of its start
    total: float  # sum of its rewards
    steps: int  # its length
    failed: bool  # whether the environment terminated it


def run_policy(policy: Policy, make_env: Callable[[], Any], episodes: int, *, seed: int = 0,
               copies: int = 8) -> list[PolicyEpisode]:
    """Plays episodes to their ends, number i from the start of seed + i, and returns them in this order.

    make_env: () -> an environment as gymnasium has them: reset(seed=...) -> (observation, info),
        step(action) -> (observation, reward, terminated, truncated, info).
    copies: how many episodes are played side by side; it changes memory and speed, not what comes out.
    """
    envs = [make_env() for _ in range(min(copies, episodes))]
    seeds = iter(range(seed, seed + episodes))
    running = [_begin(env, next(seeds)) for env in envs]
    state, over = policy.reset(len(running)), []
    while running:
        actions, state = policy.act(stacked_observations([each.observation for each in running]), state)
        check_actions(actions, len(running))
        running = [each.after(action) for each, action in zip(running, actions, strict=True)]
        done = torch.tensor([each.done for each in running])
        over += [each.result() for each in running if each.done]
        ended = done.nonzero()[:, 0].tolist()
        fresh = {row: _begin(running[row].env, each) for row, each in zip(ended, seeds, strict=False)}
        running = [fresh.get(row, each) for row, each in enumerate(running)]
        state = reset(state, policy.reset(len(running)), done)
        if len(fresh) < len(ended):  # no further episode for some of the rows
            keep = [row for row, each in enumerate(running) if not each.done]
            running, state = [running[row] for row in keep], select(state, torch.tensor(keep, dtype=torch.long))
    for env in envs:
        env.close()
    return sorted(over)


class _Running(NamedTuple):
    """An episode that is being played."""

    env: Any
    seed: int
    observation: Any
    total: float = 0.0
    steps: int = 0
    failed: bool = False
    done: bool = False

    def after(self, actions: np.ndarray) -> _Running:
        """After an action [A], or several [C, A] as far as the episode goes on."""
        now = self
        for observation, reward, terminated, truncated, _ in steps_of(self.env, actions):
            now = now._replace(observation=observation, total=now.total + float(reward), steps=now.steps + 1,
                               failed=bool(terminated), done=bool(terminated or truncated))
        return now

    def result(self) -> PolicyEpisode:
        return PolicyEpisode(self.seed, self.total, self.steps, self.failed)


def steps_of(env: Any, actions: np.ndarray) -> Iterator[tuple[Any, Any, bool, bool, dict[str, Any]]]:
    """What the environment answers to an action [A], or to several [C, A] as far as the episode goes on."""
    for action in np.atleast_2d(actions):
        answer = env.step(np.array(action))
        yield answer
        if answer[2] or answer[3]:
            return


def _begin(env: Any, seed: int) -> _Running:
    return _Running(env, seed, env.reset(seed=seed)[0])
