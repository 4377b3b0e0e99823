"""PushT: a disc pushes a T-shaped block to a place and an angle, after the package gym-pusht, in MuJoCo."""
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import ArrayLike

from .pusht_block import CENTRE, SIDE, SUBSTEPS, coverage, table_xml
from .pusht_expert import push_blocks
from .rendering import Cameras

COVERAGE = 0.95         # of the goal that counts as success
LOW = np.array([0, 0, -0.1, -0.1, 0], np.float32)  # of observations
HIGH = np.array([0.52, 0.52, 0.62, 0.62, 6.3], np.float32)
STATE = mujoco.mjtState.mjSTATE_INTEGRATION


class PushState(NamedTuple):
    """The state between two steps."""

    physics: np.ndarray
    elapsed: int
    held: int
    reached: bool
    random: np.random.Generator


class PushTEnv(gymnasium.Env):
    """`dforce/PushT-v0`: geometry, starts, success (coverage above .95) and 300 steps of gym-pusht; MuJoCo's contacts.

    Action [2]: where the disc shall be, in metres on a table of 0.512 m; it is drawn there by a damped spring.
    observations: "low_dim" [5], x and y of the disc, x, y and angle of the block; "image", {"top"} uint8 [size, size,
    3]; "mixed", the picture and "proprio" [2], the disc. The reward is the coverage: the share of the goal's area that
    the block covers, over .95, at most 1. Nothing has to be remembered. Episodes are truncated after `max_steps`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_names = ["disc x", "disc y", "block x", "block y", "block angle"]
    action_names = ["disc x", "disc y"]

    def __init__(self, *, observations: str = "low_dim", image_size: int = 96, max_steps: int = 300,
                 render_mode: str | None = None):
        self.model = mujoco.MjModel.from_xml_string(table_xml())
        self.data = mujoco.MjData(self.model)
        self.observations, self.image_size = observations, image_size
        self.max_steps, self.render_mode = max_steps, render_mode
        self.action_space = Box(0, SIDE, (2,), np.float32)
        vector = Box(LOW, HIGH)
        parts: dict[str, gymnasium.Space] = {"top": Box(0, 255, (image_size, image_size, 3), np.uint8)}
        spaces = {"low_dim": vector, "image": Dict(parts),
                  "mixed": Dict({**parts, "proprio": Box(LOW[:2], HIGH[:2])})}
        if observations not in spaces or render_mode not in (None, "rgb_array"):
            raise ValueError(f"observations is one of {', '.join(spaces)} and render_mode 'rgb_array' or None, got "
                             f"{observations!r} and {render_mode!r}")
        self.observation_space = spaces[observations]
        self._cameras: dict[int, Cameras] = {}
        self.elapsed, self.held, self.reached = 0, 0, False

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """A random place of the block, and one of the disc that is not on it."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        block, disc = self.np_random.uniform(0.1, 0.4, 2), np.zeros(2)
        while not disc.any() or np.linalg.norm(disc - block) < 0.1:
            disc = self.np_random.uniform(0.05, 0.45, 2)
        self.data.qpos[:] = [*disc, *block, self.np_random.uniform(-np.pi, np.pi)]
        self.data.ctrl[:] = disc
        mujoco.mj_forward(self.model, self.data)
        self.elapsed, self.held, self.reached = 0, 0, False
        return self.observe(), self._info()

    def step(self, action: ArrayLike) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step of 0.1 s."""
        action = np.asarray(action, float)
        if action.shape != (2,) or not np.isfinite(action).all():
            raise ValueError(f"action is {action}; want two finite numbers, x and y of the disc in [0, {SIDE}]")
        self.data.ctrl[:] = np.clip(action, 0, SIDE)
        mujoco.mj_step(self.model, self.data, SUBSTEPS)
        self.elapsed += 1
        covered = coverage(self.data.qpos[2:])
        self.held = (self.held + 1) * (covered > COVERAGE)
        self.reached |= self.held > 0
        return (self.observe(), min(covered / COVERAGE, 1.0), False, self.elapsed >= self.max_steps, self._info())

    def expert(self, rng: np.random.Generator, tail: int = 20) -> Iterator[np.ndarray]:
        """The planned expert, which draws nothing: one short push after the other, then `tail` steps of rest."""
        yield from push_blocks(self.model, self.data, COVERAGE)
        rest = self.data.qpos[:2].copy()
        for _ in range(tail):
            yield rest

    def observe(self) -> Any:
        """The observation now."""
        x, y, angle = self.data.qpos[2:]
        vector = np.array([*self.data.qpos[:2], x + CENTRE * np.sin(angle), y - CENTRE * np.cos(angle),
                           angle % (2 * np.pi)], np.float32)
        if self.observations == "low_dim":
            return np.clip(vector, LOW, HIGH)
        seen = {"top": self._picture(self.image_size)}
        return seen if self.observations == "image" else {**seen, "proprio": np.clip(vector[:2], LOW[:2], HIGH[:2])}

    def render(self) -> np.ndarray | None:
        """uint8 [240, 240, 3] from above."""
        return None if self.render_mode is None else self._picture(240)

    def close(self) -> None:
        for cameras in self._cameras.values():
            cameras.close()
        self._cameras = {}

    def get_state(self) -> PushState:
        """The state, to be given to `set_state`, here or in another environment."""
        physics = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, physics, STATE)
        return PushState(physics, self.elapsed, self.held, self.reached, copy.deepcopy(self.np_random))

    def set_state(self, state: PushState) -> None:
        """Goes back to a state: what follows is equal bit for bit."""
        mujoco.mj_setState(self.model, self.data, state.physics, STATE)
        self.elapsed, self.held, self.reached = state[1:4]
        self.np_random = copy.deepcopy(state.random)

    def _info(self) -> dict[str, Any]:
        return {"stage": int(self.reached), "decision_due": False, "success": self.held > 0,
                "success_held": self.held, "reached": self.reached, "clue": np.zeros(0, int),
                "coverage": coverage(self.data.qpos[2:])}

    def _picture(self, size: int) -> np.ndarray:
        if size not in self._cameras:
            self._cameras[size] = Cameras(self.model, size)
        return self._cameras[size].take(self.data, ["top"])[0]
