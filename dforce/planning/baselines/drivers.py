"""Baselines of learnt planners: random, straight to the goal, the scripted controller, and retrieval.

The first three are drivers, drive(obs [N, O], goal [N, G], rng) -> action [N, A]; retrieval is a planner.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from dforce.envs import Env, Maze, WaypointController, World, as_world
from dforce.envs.maze.controller import D_GAIN, P_GAIN, steer
from dforce.planning.control import Executed, Plan, Planner, play
from dforce.planning.worlds import as_env

BUILDABLE = ("random_driver", "straight_driver", "straight_in", "controller_driver", "retrieval_planner")

Driver = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def random_driver(obs: np.ndarray, goal: np.ndarray, rng: np.random.Generator, *,
                  width: int | None = None) -> np.ndarray:
    """Uniform actions [N, width]: D4RL's ref_min is what these earn. width: that of a goal unless given."""
    return rng.uniform(-1.0, 1.0, size=(len(obs), goal.shape[1] if width is None else width))


def straight_driver(obs: np.ndarray, goal: np.ndarray, rng: np.random.Generator, *,
                    gains: tuple[float, float] = (P_GAIN, -D_GAIN)) -> np.ndarray:
    """PD to the goal as if there were no walls: 10 (goal - x) - v, clipped. obs: [N, O], goal: [N, G] -> [N, G].

    It scores 106 on umaze: the starts that it fails on are what counts. `straight_in` takes a world's own gains.
    """
    width = goal.shape[1]
    return steer(gains, goal - obs[:, :width], -obs[:, width:])


def straight_in(place: Maze | Env) -> Driver:
    """`straight_driver` with the gains of a world. ValueError for a world that has none."""
    gains = as_env(place).gains
    if gains is None:
        raise ValueError(f"{as_env(place).name} cannot be driven straight at a goal: it has no gains")
    return partial(straight_driver, gains=gains)


def controller_driver(place: Maze | World) -> Driver:
    """D4RL's waypoint controller, planned anew for each episode, as a driver good for ONE run_driver call.

    D4RL's ref_max reused a controller that kept its old path across episodes, hence scores far above 100 here.
    """
    world = as_world(place)
    controllers: list[WaypointController] = []

    def drive(obs: np.ndarray, goal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if not controllers:
            controllers.append(WaypointController(world.maze, len(obs), rng, gains=world.gains))
        return controllers[0].act(obs, goal)

    return drive


def run_driver(place: Maze | Env, driver: Driver, starts: np.ndarray, goals: np.ndarray, *, steps: int | None = None,
               seed: int = 0, advance: Callable[[float], object] | None = None) -> Executed:
    """Drives N episodes to their end; place, starts, goals, steps, advance: as in `play`."""
    rng = np.random.default_rng(seed)
    return play(place, lambda t, obs, goal: driver(obs, goal, rng), starts, goals, steps=steps,
                advance=advance)


def retrieval_planner(observations: np.ndarray, actions: np.ndarray, *, horizon: int, arrive: float = 0.4,
                      slack: float = 0.1, scale: np.ndarray | None = None) -> Planner:
    """The planner that remembers: the demonstration nearest in start that gets to the goal, replayed from there.

    observations: [C, S + 1, O], actions: [C, S, A] of C chains, physical units. A candidate is every time index whose
    chain is within `arrive` cells of the goal at most `horizon` steps later. Starts are compared by Euclidean distance
    of observation / scale, the data's standard deviation [O] unless given; among the candidates within `slack` of the
    nearest, the quickest is taken. The plan is the demonstration until it arrives, then the goal at rest; where none
    arrives, the one begun nearby that comes closest.
    """
    # Passing counts, for demonstrations never stop; .4 is what `tracking` calls arriving. The slack is there because
    # dense data hold hundreds of starts that a PD cannot tell apart: the very nearest of them is no better a match,
    # but may wander elsewhere before it visits the goal (umaze, 1M steps: 100 at slack 0, 143 at .1, 145 at .3).
    checked_demonstrations(observations, actions, horizon)
    width = observations.shape[2]
    scale = observations.reshape(-1, width).std(axis=0) if scale is None else np.asarray(scale, dtype=np.float64)
    points = observations[:, :-1].reshape(-1, width) / scale  # the last observation starts nothing
    order = np.argsort(points[:, 0], kind="stable")
    memory = DemonstrationMemory(observations, actions, scale, points[order], order)
    return partial(recall, memory, horizon=horizon, arrive=arrive, slack=slack)


class DemonstrationMemory(NamedTuple):
    """Demonstrations and their starts: points [C * S, O] = start / scale, sorted by column 0, in `order` [C * S]."""

    observations: np.ndarray
    actions: np.ndarray
    scale: np.ndarray
    points: np.ndarray
    order: np.ndarray


def recall(memory: DemonstrationMemory, obs: np.ndarray, goal: np.ndarray, remaining: int, rng: np.random.Generator, *,
           horizon: int, arrive: float, slack: float) -> Plan:
    """The planner of `retrieval_planner`. obs: [N, O], goal: [N, G] -> Plan of N, `remaining` steps; rng is unused."""
    planned = Plan(*(np.zeros((len(obs), remaining, width)) for width in (memory.actions.shape[2], obs.shape[1])))
    for target in np.unique(goal, axis=0):
        wait = steps_to_goal(memory.observations, target, arrive)[memory.order]
        arriving = wait <= horizon
        anywhere = bool(arriving.any())
        usable = arriving if anywhere else np.ones_like(arriving)
        for episode in np.flatnonzero((goal == target).all(axis=1)):
            close, distance = nearest_within(memory.points, usable, obs[episode] / memory.scale, slack)
            if anywhere:  # the quickest; of equally quick ones the nearest
                row = int(close[np.lexsort((distance, wait[close]))[0]])
                length, rest = int(wait[row]), target
            else:
                row, length, rest = closest_pass(memory, close, target, horizon)
            chain, first = divmod(int(memory.order[row]), memory.actions.shape[1])
            length = min(length, remaining)
            planned.actions[episode, :length] = memory.actions[chain, first : first + length]
            planned.states[episode, :length] = memory.observations[chain, first + 1 : first + 1 + length]
            planned.states[episode, length:, :len(rest)] = rest
    return planned


def steps_to_goal(observations: np.ndarray, goal: np.ndarray, arrive: float) -> np.ndarray:
    """Steps from each index until its chain is next within `arrive` of the goal: [C, S + 1, O] -> [C * S]; or huge."""
    length = observations.shape[1]
    never = 2**31
    there = ((observations[..., :len(goal)] - goal) ** 2).sum(axis=-1) <= arrive**2
    time = np.arange(length)
    arrival = np.where(there, time, never + length)
    arrival = np.minimum.accumulate(arrival[:, ::-1], axis=1)[:, ::-1]  # the next arrival at or after each index
    return (arrival - time)[:, :-1].reshape(-1)


def closest_pass(memory: DemonstrationMemory, points: np.ndarray, goal: np.ndarray,
                 horizon: int) -> tuple[int, int, np.ndarray]:
    """The index of `points` whose next `horizon` steps pass closest to goal [G], after how many, and where [G]."""
    best = (np.inf, 0, 0, goal)
    for row in points.tolist():
        chain, first = divmod(int(memory.order[row]), memory.actions.shape[1])
        places = memory.observations[chain, first : first + horizon + 1, :len(goal)]
        away = np.linalg.norm(places - goal, axis=1)
        step = int(away.argmin())
        best = min(best, (float(away[step]), row, step, places[step]), key=lambda each: each[:3])
    return best[1:]


def nearest_within(points: np.ndarray, usable: np.ndarray, query: np.ndarray, slack: float,
                   ) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the usable points within `slack` of the nearest's distance to query [O], and their distances.

    points: [M, O], sorted by column 0, about which a window is widened; usable: [M] bool, at least one.
    """
    reach = max(2 * slack, 0.05)
    while True:
        low, high = np.searchsorted(points[:, 0], [query[0] - reach, query[0] + reach])
        near = low + np.flatnonzero(usable[low:high])
        distance = np.sqrt(((points[near] - query) ** 2).sum(axis=1))
        everything = low == 0 and high == len(points)
        # Whatever lies outside the window is further than `reach`, so the best and its neighbours are all inside.
        if everything or (len(near) and distance.min() + slack <= reach):
            break
        reach *= 2
    close = distance <= distance.min() + slack
    return near[close], distance[close]


def checked_demonstrations(observations: np.ndarray, actions: np.ndarray, horizon: int) -> None:
    """ValueError unless observations are [C, S + 1, O], actions [C, S, A], all finite, and horizon >= 1."""
    if observations.ndim != 3 or observations.shape[1] < 2:
        raise ValueError(f"observations must be [C, S + 1, O] with S >= 1, got {observations.shape}")
    chains, length = observations.shape[:2]
    if actions.ndim != 3 or actions.shape[:2] != (chains, length - 1):
        raise ValueError(f"actions must be [{chains}, {length - 1}, A], one a step of each chain, got {actions.shape}")
    if not (np.isfinite(observations).all() and np.isfinite(actions).all()):
        raise ValueError("the demonstrations hold NaN or infinite numbers; drop those episodes first")
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1 step, got {horizon}")
