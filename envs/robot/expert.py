"""Scripted experts, as streams of actions: they see the true state, and an environment steps in between."""
from collections.abc import Iterator

import numpy as np

from .arm import HOME, Arm
from .scene import CUBE, SLOT_X
from .table_env import TableEnv

HOVER = 0.16            # m above the table at which a cube is carried
SPEED = 0.05            # m a step
DWELL = 3               # steps for the gripper to close or to open
ARRIVED, PATIENCE = 0.006, 6  # m from its target at which the tool has arrived, steps that are waited for it at most
PLACEMENT = 0.015       # m by which the places of cubes vary on each axis


def move(arm: Arm, target: np.ndarray, grip: bool) -> Iterator[np.ndarray]:
    """Straight to a target."""
    while (distance := float(np.linalg.norm(target - arm.target))) > 1e-6:
        yield np.append(arm.target + (target - arm.target) * min(1.0, SPEED / distance), grip)


def stay(arm: Arm, grip: bool, steps: int) -> Iterator[np.ndarray]:
    """At the commanded position for some steps."""
    for _ in range(steps):
        yield np.append(arm.target, grip)


def settle(arm: Arm, grip: bool) -> Iterator[np.ndarray]:
    """At the commanded position until the tool has arrived there: grasps fail without it."""
    for action in stay(arm, grip, PATIENCE):
        if np.linalg.norm(arm.tool - arm.target) < ARRIVED:
            return
        yield action


def go_home(arm: Arm, rng: np.random.Generator, jitter: float) -> Iterator[np.ndarray]:
    """To a place around home, with the gripper open."""
    yield from move(arm, HOME + rng.uniform(-jitter, jitter, 3), False)
    yield from settle(arm, False)


def carry(env: TableEnv, cube: int, y: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Takes a cube and puts it into the slot at `y`."""
    arm = env.arm
    goal = np.array([SLOT_X, y]) + rng.uniform(-PLACEMENT, PLACEMENT, 2)
    start = env.cube(cube)[:2]
    yield from move(arm, np.append(start, HOVER), False)
    yield from move(arm, np.append(start, CUBE), False)
    yield from settle(arm, False)
    yield from stay(arm, True, DWELL)
    yield from move(arm, np.append(start, HOVER), True)
    yield from move(arm, np.append(goal, HOVER), True)
    yield from move(arm, np.append(goal, CUBE + 0.003), True)
    yield from settle(arm, True)
    yield from stay(arm, False, DWELL)
    yield from move(arm, np.append(goal, HOVER), False)


def rest(env: TableEnv, limit: int = 50) -> Iterator[np.ndarray]:
    """Waits until a decision is due."""
    for action in stay(env.arm, False, limit):
        if env.decision_due:
            return
        yield action
