"""The table: what stands on it, where the cameras are, and how light and colours vary."""
import copy
import os
from functools import lru_cache
from typing import NamedTuple

import mujoco
import numpy as np

from .panda import find_panda, load_spec

CAMERAS = "front", "top"
SLOT_X, SLOT_RADIUS = 0.50, 0.07
CUBE = 0.022            # half the side of a cube, in metres
TIMESTEP = 0.005        # s
COLORS = {"red": (0.9, 0.1, 0.1), "green": (0.1, 0.75, 0.2), "blue": (0.15, 0.3, 0.9), "yellow": (0.95, 0.85, 0.1)}


class Props(NamedTuple):
    """What stands on the table.

    slots: y of the grey discs at x = SLOT_X. cubes, discs: names in COLORS, of free cubes and of coloured discs that
    move by hand and touch nothing. lamps: two spheres at the back of the table, "cue" and "go".
    """

    slots: tuple[float, ...] = ()
    cubes: tuple[str, ...] = ()
    discs: tuple[str, ...] = ()
    lamps: bool = False


def build(props: Props, menagerie: str | os.PathLike | None = None) -> tuple[mujoco.MjModel, np.ndarray, list[int]]:
    """A new model, the arm's posture [7] to begin inverse kinematics with, and qpos addresses of the 9 joints."""
    model, posture, addresses = _compiled(props, None if menagerie is None else os.fspath(menagerie))
    return copy.copy(model), np.array(posture), addresses


@lru_cache(maxsize=8)
def _compiled(props: Props, menagerie: str | None) -> tuple[mujoco.MjModel, tuple[float, ...], list[int]]:
    source = find_panda(menagerie)
    model = load_spec(source, _world(props)).compile()
    return model, source.posture, [int(model.joint(name).qposadr[0]) for name in (*source.joints, *source.fingers)]


def _world(props: Props) -> str:
    """MJCF of the table, with {base} for the arm."""
    grey = "".join(f'<geom type="cylinder" size="{SLOT_RADIUS} .0008" pos="{SLOT_X} {y} .0008" rgba=".85 .85 .85 1" '
                   'contype="0" conaffinity="0"/>' for y in props.slots)
    cubes = "".join(
        f'<body name="prop_{name}" pos="{SLOT_X} {i - 1} {CUBE}"><freejoint/><geom name="{name}" type="box" '
        f'size="{CUBE} {CUBE} {CUBE}" rgba="{_rgba(name)}" mass=".05" friction="1 .01 .0005" contype="2" '
        'conaffinity="3"/></body>' for i, name in enumerate(props.cubes))
    discs = "".join(f'<geom name="{name}" type="cylinder" size=".05 .004" pos="{SLOT_X} 0 .004" rgba="{_rgba(name)}" '
                    'contype="0" conaffinity="0"/>' for name in props.discs)
    lamps = "".join(f'<geom name="{name}" type="sphere" size=".05" pos=".66 {y} .05" contype="0" conaffinity="0"/>'
                    for name, y in (("cue", 0.08), ("go", -0.08)) if props.lamps)
    return f"""<option timestep="{TIMESTEP}" integrator="implicitfast" cone="elliptic" impratio="10"/>
      <visual><quality shadowsize="0" offsamples="0"/><map znear="0.01" zfar="20"/>
      <headlight diffuse=".3 .3 .3" ambient=".4 .4 .4" specular="0 0 0"/></visual>
      <worldbody><light name="lamp" pos=".5 0 1.8" dir="0 0 -1" castshadow="false" specular="0 0 0"/>
      <geom name="table" type="plane" size="2 2 .1" rgba=".35 .32 .3 1" contype="1" conaffinity="2"/>
      <camera name="front" pos="1.15 0 .62" xyaxes="0 1 0 -.64 0 .77" fovy="42"/>
      <camera name="top" pos=".48 0 1.15" xyaxes="0 1 0 -1 0 0" fovy="34"/>
      {grey}{discs}{lamps}{cubes}{{base}}</worldbody>"""


def _rgba(name: str) -> str:
    return " ".join(map(str, (*COLORS[name], 1)))


class Look(NamedTuple):
    """Light and colours of an episode. colors: {geom: rgb [3]}; light: diffuse of the lamp; place: [3] of the lamp."""

    colors: dict[str, np.ndarray]
    light: np.ndarray
    place: np.ndarray

    def show(self, model: mujoco.MjModel) -> None:
        """Paints a model."""
        for name, color in self.colors.items():
            model.geom(name).rgba[:3] = color
        model.light("lamp").diffuse, model.light("lamp").pos = self.light, self.place


def draw_look(props: Props, rng: np.random.Generator) -> Look:
    """Every colour varies by at most .1 a channel, the light by a third, its place by 0.4 m."""
    colors = {name: np.clip(np.array(COLORS[name]) + rng.uniform(-0.1, 0.1, 3), 0, 1)
              for name in (*props.cubes, *props.discs)}
    colors["table"] = np.array((0.35, 0.32, 0.3)) + rng.uniform(-0.1, 0.1, 3)
    return Look(colors, 0.3 * rng.uniform(0.67, 1.33) + rng.uniform(-0.05, 0.05, 3),
                np.array((0.5, 0.0, 1.8)) + rng.uniform(-0.4, 0.4, 3))
