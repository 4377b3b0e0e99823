"""Where the arm comes from, how it is drawn without a screen, and that its controller arrives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dforce.envs.robot import panda, rendering
from dforce.envs.robot.arm import HOME, Arm
from dforce.envs.robot.scene import Props, build
from dforce.envs.robot.swap import SwapEnv

# Franka's kinematics as MuJoCo Menagerie arranges and names them, without its meshes.
LINKS = (("0 0 .333", "", "-2.8973 2.8973"), ("0 0 0", "1 -1 0 0", "-1.7628 1.7628"),
         ("0 -.316 0", "1 1 0 0", "-2.8973 2.8973"), (".0825 0 0", "1 1 0 0", "-3.0718 -.0698"),
         ("-.0825 .384 0", "1 -1 0 0", "-2.8973 2.8973"), ("0 0 0", "1 1 0 0", "-.0175 3.7525"),
         (".088 0 0", "1 1 0 0", "-2.8973 2.8973"))


def checkout(root: Path) -> Path:
    """A folder like a Menagerie checkout, with the parts that are used here."""
    inertia = '<inertial pos="0 0 0" mass="{}" diaginertia="{} {} {}"/>'
    body, tip = inertia.format(2, 0.02, 0.02, 0.02), inertia.format(0.015, 2e-6, 2e-6, 1e-6)
    arm = "".join(f'<body name="link{i}" pos="{place}" quat="{turn or "1 0 0 0"}"><joint name="joint{i}" axis="0 0 1" '
                  f'range="{span}"/>{body}' for i, (place, turn, span) in enumerate(LINKS, 1))
    sides = (("left", "1 0 0 0"), ("right", "0 0 0 1"))
    fingers = "".join(f'<body name="{side}_finger" pos="0 0 .0584" quat="{turn}"><joint name="finger_joint{i}" '
                      f'type="slide" axis="0 1 0" range="0 .04"/>{tip}</body>'
                      for i, (side, turn) in enumerate(sides, 1))
    folder = root / "franka_emika_panda"
    (folder / "assets").mkdir(parents=True)
    (folder / "panda.xml").write_text(
        '<mujoco model="panda"><compiler angle="radian" meshdir="assets" autolimits="true"/><worldbody>'
        f'<light name="top" pos="0 0 2"/><body name="link0">{body}{arm}<body name="link8" pos="0 0 .107">'
        f'<body name="hand" quat=".9238795 0 0 -.3826834">{tip}{fingers}</body>{"</body>" * 9}</worldbody>'
        '<actuator><position name="actuator1" joint="joint1"/></actuator>'
        '<keyframe><key name="home" qpos="0 0 0 -1.57 0 1.57 -.78 .04 .04"/></keyframe></mujoco>')
    return root


def test_the_arm_is_drawn_with_few_triangles_and_its_meshes_are_not_mixed_up() -> None:
    model = build(Props())[0]
    faces = {model.mesh(i).name: int(model.mesh_facenum[i]) for i in range(model.nmesh)}
    assert faces["link0_col"] == 200 and sum(faces.values()) < 5000


def test_one_line_where_there_is_no_arm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkout of MuJoCo Menagerie"):
        SwapEnv(menagerie=tmp_path)
    monkeypatch.setattr(panda.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'dforce\[robots\]'"):
        panda.find_panda()


def test_the_arm_of_a_menagerie_checkout_swaps_too(tmp_path: Path) -> None:
    env = SwapEnv(menagerie=checkout(tmp_path))
    env.reset(seed=0)
    for action in env.expert(np.random.default_rng(0), 1):
        info = env.step(action)[4]
    assert info["success"]


@pytest.mark.parametrize("position", [HOME, np.array([0.6, 0.3, 0.03]), np.array([0.3, -0.3, 0.4])])
def test_the_tool_arrives_pointing_down_however_it_came(position: np.ndarray) -> None:
    """Within 3 mm, and in the same posture from both sides: the free joint is pulled to one place."""
    postures = []
    for first in (np.array([0.5, 0.3, 0.2]), np.array([0.5, -0.3, 0.2])):
        arm = Arm(*build(Props()))
        arm.place(HOME)
        for target in [first] * 10 + [position] * 25:
            arm.command(target, False)
        assert np.linalg.norm(arm.tool - position) < 0.003
        assert arm.data.site("tool").xmat[8] < -0.999
        postures.append(arm.data.qpos[arm.joints].copy())
    assert np.abs(postures[0] - postures[1]).max() < 0.01


@pytest.mark.slow
def test_a_backend_is_chosen_even_if_mujoco_was_imported_before(pictures: None) -> None:
    code = ("import mujoco, os\nfrom dforce.envs.robot.rendering import Cameras\n"
            "model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><light pos=\"0 0 1\"/>"
            "<camera name=\"c\" pos=\"0 0 1\"/><geom size=\".2\"/></worldbody></mujoco>')\n"
            "cameras = Cameras(model, 8)\n"
            "print(os.environ['MUJOCO_GL'], cameras.take(mujoco.MjData(model), ['c'])[0].max() > 50)\ncameras.close()")
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout in ("egl True\n", "osmesa True\n"), done.stderr


def test_one_line_where_nothing_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering, "_egl_works", lambda: False)
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(RuntimeError, match="libegl1"):
        rendering.choose_backend.__wrapped__()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert rendering.choose_backend.__wrapped__() == "glfw"
