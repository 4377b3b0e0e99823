"""Franka's Panda as a MuJoCo specification, read from what is installed; nothing of it is kept in this package.

The model of the package gymnasium-robotics is used, or `franka_emika_panda` of a checkout of MuJoCo Menagerie. Both get
the same position control, fingertips and gravity compensation, so that one controller drives either.
"""
import importlib.util
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import mujoco
import numpy as np

STIFFNESS, DAMPING = 4500.0, 100.0  # N m / rad and N m s / rad of the first four joints
ASSETS = "envs/assets/kitchen_franka/franka_assets"  # in gymnasium-robotics
WRIST = 0.35, 0.1                   # share of both in the last three
GRIP = 100.0                        # N / m of the fingers' control


class Source(NamedTuple):
    """Where a model of the arm comes from and how its parts are called."""

    xml: str                        # MJCF that includes the arm, with absolute paths
    base: str                       # MJCF that puts the arm into the world body, "" where `xml` does
    joints: tuple[str, ...]         # of the arm, seven
    fingers: tuple[str, str]        # joints of the fingers, left and right
    tips: tuple[str, str]           # bodies of the fingers
    turned: bool                    # the right finger's frame is turned by half a circle
    posture: tuple[float, ...]      # joint angles from which inverse kinematics begins


def find_panda(menagerie: str | os.PathLike | None = None) -> Source:
    """The arm of gymnasium-robotics, or of a Menagerie checkout at `menagerie`.

    FileNotFoundError where there is none, which says what to install.
    """
    if menagerie is not None:
        return _from_menagerie(Path(menagerie).expanduser().absolute())
    package = importlib.util.find_spec("gymnasium_robotics")
    folder = Path(package.origin if package and package.origin else "").parent / ASSETS
    if not (folder / "chain.xml").is_file():
        raise FileNotFoundError("the robot arm is read from the package gymnasium-robotics, which is not installed: "
                                "pip install 'dforce[robots]', or name the folder of a MuJoCo Menagerie checkout as "
                                "menagerie=")
    xml = (f'<include file="{folder}/assets.xml"/><compiler angle="radian" meshdir="{folder}/meshes"/>'
           f'<include file="{folder}/actuator.xml"/>')
    return Source(xml, f'<include file="{folder}/chain.xml"/>', tuple(f"robot:panda0_joint{i}" for i in range(1, 8)),
                  ("robot:panda0_finger_joint1", "robot:panda0_finger_joint2"),
                  ("panda0_leftfinger", "panda0_rightfinger"), False, (0, -0.3, 0, -2.2, 0, 0.3, 0.78))


def _from_menagerie(root: Path) -> Source:
    file = root / "franka_emika_panda" / "panda.xml"
    if not file.is_file():
        raise FileNotFoundError(f"menagerie={root} is no checkout of MuJoCo Menagerie: it has no "
                                f"{file.relative_to(root)}")
    xml = f'<include file="{file}"/><compiler angle="radian" meshdir="{file.parent}/assets"/>'
    return Source(xml, "", tuple(f"joint{i}" for i in range(1, 8)), ("finger_joint1", "finger_joint2"),
                  ("left_finger", "right_finger"), True, (0, -0.3, 0, -2.2, 0, 1.87, 0.78))


def load_spec(source: Source, world: str) -> mujoco.MjSpec:
    """The arm in a world, controlled by the positions of nine joints: seven of the arm, two of the fingers.

    world: MJCF elements beside <worldbody> and in it, as `{base}` marks where the arm goes; its bodies are named
    "prop...". Read from a file and not from memory, where MuJoCo mixes up meshes whose files are called the same.
    """
    text = f"<mujoco>{source.xml}{world.format(base=source.base)}</mujoco>"
    with tempfile.TemporaryDirectory(prefix="dforce-robot-") as folder:
        file = Path(folder) / "scene.xml"
        file.write_text(text)
        spec = mujoco.MjSpec.from_file(str(file))
    for part in [*spec.actuators, *spec.keys, *(light for light in spec.lights if light.name != "lamp")]:
        spec.delete(part)
    arm = [body for body in spec.bodies if body.name != "world" and not body.name.startswith("prop")]
    drawn = {geom.meshname for body in arm for geom in body.geoms if _coarse(geom)}
    for body in arm:
        body.gravcomp = 1.0
        for geom in list(body.geoms):
            if _coarse(geom):
                geom.contype = geom.conaffinity = geom.group = 0
            else:
                spec.delete(geom)
    for mesh in [mesh for mesh in spec.meshes if mesh.name not in drawn]:
        spec.delete(mesh)
    _add_fingertips(spec, source)
    _add_control(spec, source)
    return spec


def _coarse(geom: mujoco.MjsGeom) -> bool:
    """A mesh made for collisions: it is drawn, because it has a hundredth of the triangles of the visual one."""
    return geom.type == mujoco.mjtGeom.mjGEOM_MESH and (geom.group == 3 or geom.meshname == "finger_viz")


def _add_fingertips(spec: mujoco.MjSpec, source: Source) -> None:
    """A pad on each finger, and the site "tool" between their ends."""
    bodies = {body.name: body for body in spec.bodies}
    for name, side in zip(source.tips, (1, 1 if source.turned else -1), strict=True):
        bodies[name].add_geom(
            name=f"pad_{name}", type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.012, 0.004, 0.014],
            pos=[0, side * 0.0045, 0.0445], friction=(2.0, 0.05, 0.001), condim=4, contype=1, conaffinity=2, group=0,
            rgba=[0.1, 0.1, 0.1, 1], solref=[0.01, 1], solimp=[0.9, 0.95, 0.001, 0.5, 2], margin=0)
    left = bodies[source.tips[0]]
    left.parent.add_site(name="tool", pos=np.array(left.pos) + [0, 0, 0.0446], quat=left.quat)


def _add_control(spec: mujoco.MjSpec, source: Source) -> None:
    joints = {joint.name: joint for joint in spec.joints}
    for number, name in enumerate(source.joints):
        stiffness, damping, force = (STIFFNESS, DAMPING, 87.0) if number < 4 else (
            STIFFNESS * WRIST[0], DAMPING * WRIST[1], 12.0)
        joint = joints[name]
        joint.damping, joint.armature = np.array([[damping], [0], [0]]), 0.1
        _add_position(spec, name, stiffness, force, joint.range)
    for name in source.fingers:
        joints[name].damping, joints[name].armature = np.array([[20.0], [0], [0]]), 0.1
        _add_position(spec, name, GRIP, 40.0, joints[name].range)


def _add_position(spec: mujoco.MjSpec, joint: str, stiffness: float, force: float, span: np.ndarray) -> None:
    """A motor of force stiffness (control - position), at most `force`."""
    actuator = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT,
                                 biastype=mujoco.mjtBias.mjBIAS_AFFINE, forcerange=[-force, force],
                                 ctrlrange=list(span))
    actuator.gainprm[0], actuator.biasprm[1] = stiffness, -stiffness
