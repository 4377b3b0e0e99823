"""MPPI (Williams et al. 2017): random shooting through the true dynamics, actions averaged by exponential weights.

It needs no data and no network but the simulator itself, to which it puts `samples` futures a step. What it knows of a
maze is what its futures run into: their cost is the distance to the goal, which points through walls.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dforce.envs import Env, Maze, World, as_world
from dforce.planning.baselines.drivers import Driver

BUILDABLE = ("mppi",)  # by name, in a configuration

Dynamics = Callable[[np.ndarray, np.ndarray], np.ndarray]  # states [M, O], actions [M, 2] -> states [M, O]
Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]      # states [M, O], goals [M, 2] -> cost of a step [M]


def distance(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """How far the position is from the goal, as the crow flies: [M, O], [M, 2] -> [M]."""
    return np.sqrt(((state[:, :2] - goal) ** 2).sum(axis=1))


def weights(cost: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(-cost / temperature) over the samples: [N, K] -> [N, K] (eq. 5 of the information-theoretic MPPI)."""
    scaled = np.exp((cost.min(axis=1, keepdims=True) - cost) / temperature)
    return scaled / scaled.sum(axis=1, keepdims=True)


def improve(dynamics: Dynamics, cost: Cost, state: np.ndarray, goal: np.ndarray, nominal: np.ndarray,
            noise: np.ndarray, *, temperature: float) -> np.ndarray:
    """The action sequence nominal [N, H, 2] after one round: the weighted mean of K noisy versions of it.

    state: [N, O], goal: [N, 2]; noise: [N, K, H, 2], standard deviation included. Actions stay within [-1, 1], before
    they are weighed: what is averaged is what was tried.
    """
    count, samples, horizon, _ = noise.shape
    tried = np.clip(nominal[:, None] + noise, -1.0, 1.0)
    now, goals = np.repeat(state, samples, axis=0), np.repeat(goal, samples, axis=0)
    total = np.zeros(count * samples)
    for t in range(horizon):
        now = dynamics(now, tried[:, :, t].reshape(-1, 2))
        total += cost(now, goals)
    return np.einsum("nk,nkha->nha", weights(total.reshape(count, samples), temperature), tried)


def mppi(place: Maze | World, *, horizon: int = 50, samples: int = 64, temperature: float = 1.0, noise: float = 1.0,
         smooth: float = 0.9, cost: Cost = distance) -> Driver:
    """MPPI as a driver, good for ONE run_driver call: each step starts from the actions left of the one before.

    horizon: steps looked ahead; samples: futures of each episode; temperature: of their weights, in units of the summed
    cost (cells times steps); noise: standard deviation of an action; smooth: correlation of that noise from step to
    step, in [0, 1): white noise moves a ball of 4 kg nowhere within half a second. ValueError out of these ranges.
    """
    if min(horizon, samples) < 1 or not (temperature > 0 and noise > 0 and 0 <= smooth < 1):
        raise ValueError(f"want horizon and samples >= 1, temperature and noise > 0, 0 <= smooth < 1; got {horizon}, "
                         f"{samples}, {temperature}, {noise}, {smooth}")
    world, kept = as_world(place), {"nominal": np.zeros((0, horizon, 2))}

    def drive(obs: np.ndarray, goal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nominal = kept["nominal"]
        if len(nominal) != len(obs):
            nominal = np.zeros((len(obs), horizon, 2))
        shaken = correlated(rng.standard_normal((len(obs), samples, horizon, 2)), smooth)
        found = improve(stepper(world, len(obs) * samples), cost, obs, goal, nominal, noise * shaken,
                        temperature=temperature)
        kept["nominal"] = np.concatenate([found[:, 1:], np.zeros_like(found[:, :1])], axis=1)
        return found[:, 0]

    return drive


def stepper(world: Env, count: int) -> Dynamics:
    """The true dynamics of a world, for so many balls at once."""
    copies = world.copies(count)

    def dynamics(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        copies.begin(state, np.zeros((count, world.goal_width)))
        return copies.step(action)[0]

    return dynamics


def correlated(white: np.ndarray, smooth: float) -> np.ndarray:
    """AR(1) noise of unit variance along axis 2, correlation `smooth` from step to step: [N, K, H, 2] -> the same."""
    out = white.copy()
    for t in range(1, white.shape[2]):
        out[:, :, t] = smooth * out[:, :, t - 1] + np.sqrt(1 - smooth**2) * white[:, :, t]
    return out
