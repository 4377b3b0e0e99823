"""Two cubes exchange their slots by way of a third; half-way pictures do not tell what has been done."""
from collections.abc import Iterator
from dataclasses import dataclass
from math import hypot
from typing import Any

import numpy as np

from .arm import HOME
from .expert import PLACEMENT, carry, go_home, rest, stay
from .scene import CUBE, SLOT_X, Props
from .table_env import HOME_JITTER, Progress, TableEnv

SLOTS = (-0.18, 0.0, 0.18)
STARTS = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]  # slots of red and of green
IN_SLOT, AT_REST = 0.05, 0.01  # m from the slot's centre, m from the height of a cube that stands
TRIES = 20              # of the moves before an episode; the first has succeeded in every episode seen
RELEASED = 0.06         # m that the gripper is open once it has let go
NAMES = ["tool x", "tool y", "tool z", "grip", "red x", "red y", "red z", "green x", "green y", "green z"]


@dataclass
class SwapProgress(Progress):
    """start: slots of red and of green at the beginning."""

    start: tuple[int, int] = (0, 1)


class SwapEnv(TableEnv):
    """`dforce/Swap-v0`: the red and the green cube shall end in one another's slots.

    The third slot is free, and one cube has to wait there. Each of the six arrangements is a beginning, a half-way
    state and an end, so one observation does not tell what comes next: where the cubes began has to be remembered. For
    the same reason an episode begins with two real moves of cubes, and every decision comes after `span` steps of rest
    at home. low_dim [10]: the tool's position, the commanded grip, the positions of red and of green; nothing more,
    because exact widths, angles and orientations betray the past. Stages: 1 a cube waits in the free slot, 2 the other
    is in its goal, 3 both are and the gripper is open. "clue": the slots of red and of green at the beginning.
    """

    def __init__(self, *, span: int = 5, **settings: Any):
        settings.setdefault("max_steps", 280 + 4 * span)
        super().__init__(Props(slots=SLOTS, cubes=("red", "green")), NAMES, **settings)
        if span < 1:
            raise ValueError(f"span is at least 1 step, got {span}")
        self.span = span
        self.progress: SwapProgress

    def expert(self, rng: np.random.Generator, tail: int = 60) -> Iterator[np.ndarray]:
        """Red to the free slot, green to red's, red to green's; home after each; at the end `tail` steps of rest."""
        red, green = self.progress.start
        for cube, slot in ((0, 3 - red - green), (1, red), (0, green)):
            yield from carry(self, cube, SLOTS[slot], rng)
            yield from go_home(self.arm, rng, HOME_JITTER)
            yield from rest(self)
        yield from stay(self.arm, False, tail)

    def arrangement(self) -> tuple[int | None, int | None]:
        """Slots of red and of green; None for a cube that stands in none."""
        return self._slot(0), self._slot(1)

    def _slot(self, cube: int) -> int | None:
        x, y, z = self.cube(cube)
        away = [hypot(x - SLOT_X, y - slot) for slot in SLOTS]
        nearest = min(range(len(SLOTS)), key=away.__getitem__)
        return nearest if away[nearest] < IN_SLOT and abs(z - CUBE) < AT_REST else None

    def _begin(self, layout: np.random.Generator, sensor: np.random.Generator) -> SwapProgress:
        """Two moves with the arm end in the start, so that nothing distinguishes it from a half-way state."""
        for _ in range(TRIES):
            red, green = STARTS[layout.integers(len(STARTS))]
            self.progress = SwapProgress(sensor, start=(red, green))
            free = 3 - red - green
            moves = [((0, red), (1, green)), ((1, green), (0, red))][int(layout.integers(2))]
            before = (green, free) if moves[0][0] == 0 else (free, red)
            self.arm.place(HOME + layout.uniform(-HOME_JITTER, HOME_JITTER, 3))
            for cube, slot in enumerate(before):
                self._put_cube(cube, layout.uniform(-PLACEMENT, PLACEMENT, 3) * (1, 1, 0) + (SLOT_X, SLOTS[slot], CUBE))
            for cube, slot in moves:
                self._play(carry(self, cube, SLOTS[slot], layout))
            self._play(go_home(self.arm, layout, HOME_JITTER))
            self._play(rest(self))
            if self.arrangement() == (red, green) and self.decision_due:
                return self.progress
        raise RuntimeError(f"the arm has not brought the cubes to their beginning in {TRIES} tries: is it a Panda?")

    def _play(self, actions: Iterator[np.ndarray]) -> None:
        for action in actions:
            self.advance(action)

    def _low_dim(self) -> tuple[np.ndarray, np.ndarray]:
        vector = np.concatenate([self.arm.tool, [self.arm.grip], self.cube(0), self.cube(1)])
        return vector, np.arange(10) != 3

    @property
    def decision_due(self) -> bool:
        return self.progress.rested >= self.span and None not in self.arrangement()

    @property
    def clue(self) -> np.ndarray:
        return np.array(self.progress.start)

    def succeeds(self) -> bool:
        """Each cube stands in the other's first slot and the gripper has let go."""
        red, green = self.progress.start
        return self.arrangement() == (green, red) and not self.arm.grip and self.arm.width > RELEASED

    def _judge(self) -> None:
        red, green = self.progress.start
        free, now, stage = 3 - red - green, self.arrangement(), self.progress.stage
        ways = [((free, green), (red, free)), ((free, red), (green, free))]
        if (stage < 2 and now in ways[stage]) or (stage == 2 and self.succeeds()):
            self.progress.stage = stage + 1
