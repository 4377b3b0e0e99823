"""A cue is shown once and then hidden; after `span` steps a disc has to be touched that only the cue tells."""
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .arm import HOME
from .expert import PLACEMENT, go_home, move, settle, stay
from .scene import COLORS, SLOT_X, Props
from .table_env import HOME_JITTER, Progress, TableEnv

CUE = 5                 # steps that the cue is shown
SPACING = 0.16          # m between the places of discs
AWAY = np.array([SLOT_X, 0.0, -0.05])  # of a disc that is not on the table yet: below it
TOUCH, TOUCH_HEIGHT = 0.05, 0.05  # m of the tool from the disc's centre, and above the table, at which it is touched
OFF, WHITE = (0.2, 0.2, 0.2), (1.0, 1.0, 1.0)


@dataclass
class CueProgress(Progress):
    """answer: the disc that is to be touched. choice: the one that was touched first, -1 for none yet.

    lit: [cue steps, objects] bool, what is lit at each step. places: [objects, 3] of the discs once they are shown.
    """

    answer: int = 0
    choice: int = -1
    lit: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool))
    places: np.ndarray = field(default_factory=lambda: np.zeros((0, 3)))


class CueEnv(TableEnv):
    """What the three tasks share: 2 to 4 discs, a cue, `span` dark steps, then the lamp "go" and one touch that counts.

    The arm is braked at home until "go" is lit, so that only memory carries the cue over. low_dim [5 + 4 objects]: the
    tool's position, the commanded grip, "go", what is lit of the cue [objects], the places of the discs. The first disc
    touched is the choice; stage 1 and success are the right one. "clue": the answer [1].
    """

    late = False        # whether the discs come on the table with "go", in places of any order

    def __init__(self, *, objects: int = 3, span: int = 20, **settings: Any):
        if not 2 <= objects <= len(COLORS) or span < 0:
            raise ValueError(f"objects is 2 to {len(COLORS)} and span at least 0, got {objects} and {span}")
        self.objects, self.span = objects, span
        self.discs = tuple(COLORS)[:objects]
        names = [*["tool x", "tool y", "tool z", "grip", "go"], *[f"cue {disc}" for disc in self.discs],
                 *[f"{disc} {axis}" for disc in self.discs for axis in "xyz"]]
        start = self._cue_steps() + span
        settings.setdefault("max_steps", start + 120)
        super().__init__(Props(discs=self.discs, lamps=True), names, **settings)
        self.progress: CueProgress

    def _cue_steps(self) -> int:
        return CUE

    def _cue(self, answer: int, layout: np.random.Generator) -> np.ndarray:
        """What is lit at each step of the cue: [steps, objects] bool."""
        return np.tile(np.arange(self.objects) == answer, (self._cue_steps(), 1))

    def expert(self, rng: np.random.Generator, tail: int = 20) -> Iterator[np.ndarray]:
        """Rests until "go", touches the disc, goes home and rests for `tail` steps."""
        while not self.go:
            yield from stay(self.arm, False, 1)
        disc = self._places()[self.progress.answer]
        yield from move(self.arm, disc + [*rng.uniform(-PLACEMENT, PLACEMENT, 2), 0.03], False)
        yield from settle(self.arm, False)
        yield from go_home(self.arm, rng, HOME_JITTER)
        yield from stay(self.arm, False, tail)

    def advance(self, action: np.ndarray) -> None:
        """Moves the arm, once "go" is lit."""
        super().advance(action if self.go else np.append(self.arm.target, 0.0))

    @property
    def go(self) -> bool:
        """Whether the cue is over and the dark steps too."""
        return self.progress.elapsed >= self._cue_steps() + self.span

    def _begin(self, layout: np.random.Generator, sensor: np.random.Generator) -> CueProgress:
        self.arm.place(HOME + layout.uniform(-HOME_JITTER, HOME_JITTER, 3))
        answer = int(layout.integers(self.objects))
        order = layout.permutation(self.objects) if self.late else np.arange(self.objects)
        places = np.stack([np.full(self.objects, SLOT_X), SPACING * (order - (self.objects - 1) / 2),
                           np.full(self.objects, 0.004)], 1)
        places[:, :2] += layout.uniform(-PLACEMENT, PLACEMENT, (self.objects, 2))
        self.progress = CueProgress(sensor, answer=answer, lit=self._cue(answer, layout), places=places)
        for action in stay(self.arm, False, 2):
            self.advance(action)
        return self.progress

    def _places(self) -> np.ndarray:
        """Places of the discs now [objects, 3]."""
        return np.tile(AWAY, (self.objects, 1)) if self.late and not self.go else self.progress.places

    def _lit(self) -> np.ndarray:
        step, lit = self.progress.elapsed, self.progress.lit
        return lit[step] if step < len(lit) else np.zeros(self.objects, bool)

    def _low_dim(self) -> tuple[np.ndarray, np.ndarray]:
        vector = np.concatenate([self.arm.tool, [self.arm.grip, self.go], self._lit(), self._places().ravel()])
        return vector, np.isin(np.arange(len(vector)), np.arange(3, 5 + self.objects), invert=True)

    def _lamp(self) -> ArrayLike:
        """Colour of the lamp "cue" now."""
        return OFF

    def _colors(self) -> Mapping[str, ArrayLike]:
        """Colours of the discs now."""
        return self.look.colors

    def _show(self) -> None:
        model = self.arm.model
        for name, place in zip(self.discs, self._places(), strict=True):
            model.geom(name).pos = place
        model.geom("go").rgba[:3] = WHITE if self.go else OFF
        model.geom("cue").rgba[:3] = self._lamp()
        for disc, color in self._colors().items():
            model.geom(disc).rgba[:3] = color

    def _judge(self) -> None:
        tool, now = self.arm.tool, self.progress
        away = np.linalg.norm(self._places()[:, :2] - tool[:2], axis=1)
        if self.go and now.choice < 0 and away.min() < TOUCH and tool[2] < TOUCH_HEIGHT:
            now.choice = int(away.argmin())
            now.stage = int(now.choice == now.answer)

    def succeeds(self) -> bool:
        return self.progress.choice == self.progress.answer

    @property
    def decision_due(self) -> bool:
        return self.go and self.progress.choice < 0 and self.progress.rested > 0

    @property
    def clue(self) -> np.ndarray:
        return np.array([self.progress.answer])


class RememberColorEnv(CueEnv):
    """`dforce/RememberColor-v0`: a lamp shows a colour; later discs of all colours appear in any order: touch it."""

    late = True

    def _lamp(self) -> ArrayLike:
        return self.look.colors[self.discs[int(self._lit().argmax())]] if self._lit().any() else OFF


class RememberPlaceEnv(CueEnv):
    """`dforce/RememberPlace-v0`: one of the dark discs lights up and goes dark again: touch it later."""

    def _colors(self) -> Mapping[str, ArrayLike]:
        return {disc: WHITE if lit else OFF for disc, lit in zip(self.discs, self._lit(), strict=True)}


class CountEnv(CueEnv):
    """`dforce/Count-v0`: a lamp blinks one time or more, at irregular times: touch the disc of that number from left.

    The blinks take the same time however many they are. "cue" of the first disc is the lamp, the others stay dark.
    """

    def _cue_steps(self) -> int:
        return 4 * self.objects

    def _cue(self, answer: int, layout: np.random.Generator) -> np.ndarray:
        lit = np.zeros((self._cue_steps(), self.objects), bool)
        for blink in layout.permutation(self.objects)[:answer + 1]:
            lit[4 * blink:4 * blink + 2, 0] = True
        return lit

    def _lamp(self) -> ArrayLike:
        return WHITE if self._lit().any() else OFF

    def _colors(self) -> Mapping[str, ArrayLike]:
        return dict.fromkeys(self.discs, OFF)
