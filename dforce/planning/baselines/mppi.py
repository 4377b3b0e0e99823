"""MPPI (Williams et al. 2017): random shooting through the true dynamics, actions averaged by exponential weights.

It puts `samples` futures a step to the simulator; their cost is the distance to the goal, as the crow flies.
"""

from collections.abc import Callable

import numpy as np

from dforce.envs import Env, Maze
from dforce.planning.baselines.drivers import Driver
from dforce.planning.worlds import as_env

BUILDABLE = ("mppi",)  # by name, in a configuration

Dynamics = Callable[[np.ndarray, np.ndarray], np.ndarray]  # states [M, O], actions [M, A] -> states [M, O]
Cost = Callable[[np.ndarray, np.ndarray], np.ndarray]      # states [M, O], goals [M, G] -> cost of a step [M]


def goal_distance(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Distance of the position from the goal, as the crow flies: [M, O], [M, G] -> [M]."""
    return np.sqrt(((state[:, :goal.shape[1]] - goal) ** 2).sum(axis=1))


def weights(cost: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(-cost / temperature) over the samples: [N, K] -> [N, K] (eq. 5 of the information-theoretic MPPI)."""
    scaled = np.exp((cost.min(axis=1, keepdims=True) - cost) / temperature)
    return scaled / scaled.sum(axis=1, keepdims=True)


def improve(dynamics: Dynamics, cost: Cost, state: np.ndarray, goal: np.ndarray, nominal: np.ndarray,
            noise: np.ndarray, *, temperature: float) -> np.ndarray:
    """Nominal actions [N, H, A] after one round, the weighted mean of K noisy ones; noise: [N, K, H, A]."""
    count, samples, horizon, width = noise.shape
    tried = np.clip(nominal[:, None] + noise, -1.0, 1.0)
    now, goals = np.repeat(state, samples, axis=0), np.repeat(goal, samples, axis=0)
    total = np.zeros(count * samples)
    for t in range(horizon):
        now = dynamics(now, tried[:, :, t].reshape(-1, width))
        total += cost(now, goals)
    return np.einsum("nk,nkha->nha", weights(total.reshape(count, samples), temperature), tried)


def mppi(place: Maze | Env, *, horizon: int = 50, samples: int = 64, temperature: float = 1.0, noise: float = 1.0,
         smooth: float = 0.9, cost: Cost = goal_distance) -> Driver:
    """MPPI as a driver, good for ONE run_driver call: each step starts from the actions left of the one before.

    horizon: steps looked ahead; samples: futures of each episode; temperature: of their weights, in units of the summed
    cost (cells times steps); noise: standard deviation of an action; smooth: correlation of that noise from step to
    step, in [0, 1): white noise moves a ball of 4 kg nowhere within half a second. ValueError out of these ranges.
    """
    if min(horizon, samples) < 1 or not (temperature > 0 and noise > 0 and 0 <= smooth < 1):
        raise ValueError(f"want horizon and samples >= 1, temperature and noise > 0, 0 <= smooth < 1; got {horizon}, "
                         f"{samples}, {temperature}, {noise}, {smooth}")
    world = as_env(place)
    kept = {"nominal": np.zeros((0, horizon, world.action_width))}

    def drive(obs: np.ndarray, goal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        nominal = kept["nominal"]
        if len(nominal) != len(obs):
            nominal = np.zeros((len(obs), horizon, world.action_width))
        shaken = correlated(rng.standard_normal((len(obs), samples, horizon, world.action_width)), smooth)
        improved = improve(world_dynamics(world, len(obs) * samples), cost, obs, goal, nominal, noise * shaken,
                           temperature=temperature)
        kept["nominal"] = np.concatenate([improved[:, 1:], np.zeros_like(improved[:, :1])], axis=1)
        return improved[:, 0]

    return drive


def world_dynamics(world: Env, count: int) -> Dynamics:
    """The true dynamics of a world, for so many bodies at once."""
    copies = world.copies(count)

    def dynamics(state: np.ndarray, action: np.ndarray) -> np.ndarray:
        copies.begin(state, np.zeros((count, world.goal_width)))
        return copies.step(action)[0]

    return dynamics


def correlated(white: np.ndarray, smooth: float) -> np.ndarray:
    """AR(1) noise of unit variance along axis 2, correlation `smooth` from step to step: [N, K, H, A] -> the same."""
    out = white.copy()
    for t in range(1, white.shape[2]):
        out[:, :, t] = smooth * out[:, :, t - 1] + np.sqrt(1 - smooth**2) * white[:, :, t]
    return out
