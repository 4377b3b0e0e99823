"""A task of memory with a known answer: a cue is shown once, then hidden, and has to be acted upon at the end."""

from __future__ import annotations

import numpy as np
import torch

from dforce.core.denoiser import Denoiser
from dforce.data.episodes import Episodes, pack
from dforce.data.token_layout import TokenLayout

STEPS, CHUNK = 8, 2
CYCLES = STEPS // CHUNK


class Cue:
    """gymnasium's reset and step. Observation [3]: the cue, -1 or 1, at the first step and 0 then; the time; noise.

    The expert does 0 but in the last CHUNK steps, in which it does the cue; the reward is 1 for an action within .5 of
    what it does, so an episode's return is STEPS where the cue was remembered.
    """

    def reset(self, *, seed: int) -> tuple[np.ndarray, dict]:
        self.rng, self.t = np.random.default_rng(seed), 0
        self.cue = float(self.rng.integers(2) * 2 - 1)
        return self.observation(), {}

    def observation(self) -> np.ndarray:
        return np.array([self.cue * (self.t == 0), self.t / STEPS, 0.1 * self.rng.normal()], np.float32)

    def expert(self) -> np.ndarray:
        return np.array([self.cue * (self.t >= STEPS - CHUNK)], np.float32)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        reward = float(abs(action[0] - self.expert()[0]) < 0.5)
        self.t += 1
        return self.observation(), reward, False, self.t == STEPS, {}

    def close(self) -> None: ...


def demonstrations(count: int, *, parts: bool = False) -> Episodes:
    """Episodes of the expert. parts: the observation is a Dict of the cue and of the rest."""
    env, observations, actions = Cue(), [], []
    for seed in range(count):
        o, a = [env.reset(seed=seed)[0]], []
        while env.t < STEPS:
            a.append(env.expert())
            o.append(env.step(a[-1])[0])
        observations.append(np.array(o))
        actions.append(np.array(a))
    names = ["observation.cue[0]", "observation.rest[0]", "observation.rest[1]"] if parts else None
    about = {"observation_names": names} if parts else {}
    return pack(observations, actions, [np.ones(STEPS)] * count, about=about)


LAYOUT = {"tokens": {"parts": {"observation": 3}, "action": 1, "chunk": CHUNK}, "window": None, "first": False,
          "cut": 0}


class Exact(Denoiser):
    """E[x0_t | noisy tokens up to t] of the expert's sequences, in physical units.

    anywhere: the sequence may begin at any observation, as windows do; else it begins with an episode.
    State [B, H + 1]: log-probability of the H cases (cue, where it began), and how many tokens there were.
    """

    causal = recurrent = True

    def __init__(self, schedule, *, anywhere: bool = False):
        self.schedule = schedule
        time, layout = torch.arange(CYCLES) * CHUNK, TokenLayout(**LAYOUT["tokens"])
        observations = torch.stack([(time == 0).float(), time / STEPS, 0 * time], -1)[None]
        actions = (time == STEPS - CHUNK).float()[None, :, None, None].expand(1, CYCLES, CHUNK, 1)
        count = torch.full((1, CYCLES), CHUNK)
        up, _ = layout.sequence(observations, actions, count)
        down, _ = layout.sequence(observations * torch.tensor([-1.0, 1, 1]), -actions, count)
        self.means = torch.cat([up, down])                                  # [2, T, E]
        self.var = torch.zeros(2 * CYCLES, layout.width)
        self.var[::2, 2] = 0.01                                             # of what is drawn anew at every step
        self.begins = 2 * torch.arange(CYCLES if anywhere else 1)

    def init_state(self, batch, cond=None):
        return torch.zeros(batch, 2 * len(self.begins) + 1)

    def absorb(self, x, level, state, cond=None):
        return self(x, level, state, cond)[1]

    def __call__(self, x, level, state, cond=None):
        alpha, sigma = (table.to(x.dtype)[:, :, None] for table in self.schedule(level, x))
        sigma, out = sigma.clamp(min=1e-3), []
        for t in range(x.shape[1]):
            at = (state[:, -1:].long() + self.begins).clamp(max=2 * CYCLES - 1)             # [B, H / 2]
            mean, var = self.means[:, at].transpose(0, 1).flatten(1, 2), self.var[at].repeat(1, 2, 1)  # [B, H, E]
            a, total = alpha[:, t], alpha[:, t]**2 * var + sigma[:, t]**2
            error = x[:, t, None] - a * mean
            score = state[:, :-1] - 0.5 * (error**2 / total + total.log()).sum(-1)
            out.append((score.softmax(-1)[..., None] * (mean + var * a / total * error)).sum(1))
            state = torch.cat([score.log_softmax(-1).clamp(min=-1e4), state[:, -1:] + 1], 1)
        return torch.stack(out, 1), state


def answers(policy, episodes: int = 40, *, seed: int = 1000, **how) -> float:
    """Share of episodes in which the policy does as the expert. how: further arguments of every `act`."""
    envs = [Cue() for _ in range(episodes)]
    observation = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    state, total = policy.reset(episodes), np.zeros(episodes)
    while envs[0].t < STEPS:
        actions, state = policy.act(observation, state, **how)
        for action in actions.swapaxes(0, 1):
            after = [env.step(each) for env, each in zip(envs, action, strict=True)]
            total += [reward for _, reward, *_ in after]
        observation = np.stack([seen for seen, *_ in after])
    return float(np.mean(total == STEPS))

