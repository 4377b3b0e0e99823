"""What the tasks at the table have in common: spaces, observations, randomness, state, pictures."""
import copy
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import ArrayLike

from .arm import HOME, PERIOD, Arm
from .rendering import Cameras
from .scene import CAMERAS, Look, Props, build, draw_look

OBSERVATIONS = "low_dim", "image", "mixed"
NEAR_HOME = 0.03        # m on each axis within which the tool is at home
HOME_JITTER = 0.015     # m on each axis by which the experts' home varies
PICTURE = 240           # pixels a side of `render`


@dataclass
class Progress:
    """What an episode remembers beside MuJoCo's state; each task adds to it."""

    sensor: np.random.Generator         # of the noise of its observations
    elapsed: int = 0
    rested: int = 0                     # steps in a row with the open gripper at home
    stage: int = 0
    success_held: int = 0               # steps in a row with success
    reached: bool = False


class TableState(NamedTuple):
    """The state of an environment between two steps: `get_state`, `set_state`."""

    arm: tuple[np.ndarray, np.ndarray]
    progress: Progress
    look: Look
    random: np.random.Generator


class TableEnv(gymnasium.Env):
    """A Panda at a table, ten actions a second; a task says what stands on it, what is observed and what is rewarded.

    Action [4]: where the tool shall be, x, y, z in metres from the foot of the arm (the tool points down; a place out
    of reach is moved to the edge, and the tool goes 0.1 m a step at most), and a number above 0.5 to close the gripper.
    observations: "low_dim", a vector; "image", {"front", "top"} uint8 [size, size, 3]; "mixed", both pictures and
    "proprio" [4], the tool's position and the commanded grip. noise: standard deviation in metres of observed
    positions. vary: light and colours differ between episodes. menagerie: folder of a MuJoCo Menagerie checkout, to
    take the arm from there. Episodes never terminate; they are truncated after `max_steps`.
    Every `info` holds "stage", "decision_due" (what comes next is to be decided at this observation), "success" (now),
    "success_held" (steps in a row with success), "reached" (success at any time) and "clue", what has to be remembered.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / PERIOD)}
    action_names = ["tool x", "tool y", "tool z", "grip"]

    def __init__(self, props: Props, low_dim: list[str], *, observations: str = "low_dim", image_size: int = 64,
                 noise: float = 0.001, vary: bool = True, max_steps: int,
                 menagerie: str | os.PathLike | None = None, render_mode: str | None = None):
        if observations not in OBSERVATIONS or render_mode not in (None, "rgb_array"):
            raise ValueError(f"observations is one of {', '.join(OBSERVATIONS)} and render_mode 'rgb_array' or None, "
                             f"got {observations!r} and {render_mode!r}")
        self.props, self.observations, self.noise, self.vary = props, observations, noise, vary
        self.image_size, self.max_steps, self.render_mode = image_size, max_steps, render_mode
        self.arm = Arm(*build(props, menagerie))
        self.observation_names = low_dim
        self.action_space = Box(np.array([0, -0.5, 0, 0], np.float32), np.array([0.8, 0.5, 0.6, 1], np.float32))
        picture = Box(0, 255, (image_size, image_size, 3), np.uint8)
        parts: dict[str, gymnasium.Space] = {"low_dim": Box(-2, 2, (len(low_dim),), np.float32),
                                             "proprio": Box(-2, 2, (4,), np.float32), **dict.fromkeys(CAMERAS, picture)}
        chosen = {"image": CAMERAS, "mixed": (*CAMERAS, "proprio")}.get(observations)
        self.observation_space = Dict({key: parts[key] for key in chosen}) if chosen else parts["low_dim"]
        self._cameras: dict[int, Cameras] = {}
        self._qpos = [self.arm.model.joint(self.arm.model.body(f"prop_{name}").jntadr[0]).qposadr[0]
                      for name in props.cubes]
        self.progress: Progress
        self.look: Look

    # What a task says.

    def _begin(self, layout: np.random.Generator, sensor: np.random.Generator) -> Progress:
        """Arranges the table, the arm at home, and returns the new episode's progress."""
        raise NotImplementedError

    def _low_dim(self) -> tuple[np.ndarray, np.ndarray]:
        """The vector that is observed, without noise, and which of its numbers are positions, bool."""
        raise NotImplementedError

    def _judge(self) -> None:
        """Brings `progress.stage` up to date after a step."""
        raise NotImplementedError

    def succeeds(self) -> bool:
        """Whether the task is solved now."""
        raise NotImplementedError

    def _show(self) -> None:
        """Paints what changes during an episode; the rest is painted already."""

    @property
    def decision_due(self) -> bool:
        """Whether what comes next is to be decided now."""
        raise NotImplementedError

    @property
    def clue(self) -> np.ndarray:
        """What has to be remembered, int64."""
        raise NotImplementedError

    # Gymnasium's interface.

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; its layout, its looks and its sensor noise have streams of their own."""
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; there are none")
        super().reset(seed=seed)
        key = int(self.np_random.integers(2**62))
        layout, look, sensor = (np.random.default_rng([key, stream]) for stream in range(3))
        self.look = draw_look(self.props, look if self.vary else np.random.default_rng(0))
        self.look.show(self.arm.model)
        self.progress = self._begin(layout, sensor)
        self._show()
        return self.observe(), self._info()

    def step(self, action: ArrayLike) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of 0.1 s; the reward is 1 for every stage that is reached for the first time."""
        action = np.asarray(action, float)
        if action.shape != (4,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action}; want four finite numbers: x, y, z of the tool and the grip")
        before = self.progress.stage
        self.advance(action)
        self.progress.elapsed += 1
        self._judge()
        success = self.succeeds()
        self.progress.success_held = (self.progress.success_held + 1) * success
        self.progress.reached |= success
        self._show()
        return (self.observe(), float(self.progress.stage - before), False,
                self.progress.elapsed >= self.max_steps, self._info())

    def advance(self, action: np.ndarray) -> None:
        """Moves the arm and counts the steps that it rests at home; neither time nor reward."""
        self.arm.command(action[:3], bool(action[3] > 0.5))
        self._count_rest(self.progress)

    def render(self) -> np.ndarray | None:
        """uint8 [240, 480, 3], the pictures of both cameras side by side."""
        return None if self.render_mode is None else np.concatenate(self._pictures(PICTURE), 1)

    def close(self) -> None:
        for cameras in self._cameras.values():
            cameras.close()
        self._cameras = {}

    def get_state(self) -> TableState:
        """The state, to be given to `set_state`, here or in another environment of the same task."""
        return TableState(self.arm.state(), *copy.deepcopy((self.progress, self.look, self.np_random)))

    def set_state(self, state: TableState) -> None:
        """Goes back to a state: what follows is equal bit for bit."""
        self.progress, self.look, self.np_random = copy.deepcopy(state[1:])
        self.arm.restore(state.arm)
        self.look.show(self.arm.model)
        self._show()

    # Observations.

    def cube(self, number: int) -> np.ndarray:
        """Position of a cube [3]."""
        return self.arm.data.qpos[self._qpos[number]:self._qpos[number] + 3].copy()

    def disturb(self, what: str, vector: ArrayLike, place: float = 0.0) -> None:
        """Something from outside, between two steps. what: "arm" or "cube", a blow of `vector` [3] N s; "moved", a cube
        that stands elsewhere afterwards, by `vector` [3] m. place: 0..1, which of the cubes."""
        cubes = self.props.cubes
        if what not in ("arm", "cube", "moved") or what != "arm" and not cubes:
            raise ValueError(f"{what!r} cannot be disturbed here: there are the arm and {len(cubes)} cubes")
        number = min(int(place * len(cubes)), len(cubes) - 1)
        if what == "moved":
            self._put_cube(number, self.cube(number) + np.asarray(vector, float))
            mujoco.mj_forward(self.arm.model, self.arm.data)
        else:
            self.arm.push(np.asarray(vector, float), None if what == "arm" else self.arm.model.body(
                f"prop_{cubes[number]}").id)

    def _put_cube(self, number: int, position: ArrayLike) -> None:
        self.arm.data.qpos[self._qpos[number]:self._qpos[number] + 7] = [*np.asarray(position, float), 1, 0, 0, 0]

    def _count_rest(self, progress: Progress) -> None:
        home = bool(abs(self.arm.tool - HOME).max() <= NEAR_HOME) and not self.arm.grip
        progress.rested = (progress.rested + 1) * home

    def observe(self) -> Any:
        """The observation now, with sensor noise drawn anew."""
        vector, position = self._low_dim()
        noisy = vector + self.noise * position * self.progress.sensor.standard_normal(len(vector))
        noisy = np.clip(noisy, -2, 2).astype(np.float32)
        if self.observations == "low_dim":
            return noisy
        seen: dict[str, np.ndarray] = dict(zip(CAMERAS, self._pictures(self.image_size), strict=True))
        return seen if self.observations == "image" else {**seen, "proprio": noisy[:4]}

    def _info(self) -> dict[str, Any]:
        now = self.progress
        return {"stage": now.stage, "decision_due": self.decision_due, "success": now.success_held > 0,
                "success_held": now.success_held, "reached": now.reached, "clue": self.clue}

    def _pictures(self, size: int) -> list[np.ndarray]:
        if size not in self._cameras:
            self._cameras[size] = Cameras(self.arm.model, size)
        return self._cameras[size].take(self.arm.data, CAMERAS)
