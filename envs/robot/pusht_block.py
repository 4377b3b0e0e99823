"""PushT's table in MuJoCo, and the geometry of its block."""
import numpy as np

SIDE = 0.512                        # m of the square table; a millimetre here is a pixel there
PUSHER = 0.015                      # m, radius of the disc
GOAL = np.array([0.256, 0.256, np.pi / 4])  # x, y of the bar's outer edge, angle
SUBSTEPS, TIMESTEP = 20, 0.005      # ten actions a second
STIFFNESS, DAMPING, MASS = 100.0, 20.0, 10.0  # of the pusher, a kilogram
CENTRE = 0.045                      # m from the bar's outer edge to the middle of gravity
# The bar and the stem in the frame of the middle of gravity: middle and half sides.
BOXES = ((np.array([0.0, -0.03]), np.array([0.06, 0.015])), (np.array([0.0, 0.03]), np.array([0.015, 0.045])))
CORNERS = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])


def outline(pose: np.ndarray) -> list[np.ndarray]:
    """Corners [4, 2] of the bar and of the stem, counter-clockwise; pose: middle of gravity and angle."""
    cosine, sine = np.cos(pose[2]), np.sin(pose[2])
    turn = np.array([[cosine, sine], [-sine, cosine]])
    return [(middle + CORNERS * half) @ turn + pose[:2] for middle, half in BOXES]


def goal_pose() -> np.ndarray:
    """Middle of gravity and angle of the block at its goal [3]."""
    x, y, angle = GOAL
    return np.array([x - CENTRE * np.sin(angle), y + CENTRE * np.cos(angle), angle])


def coverage(pose: np.ndarray) -> float:
    """Share of the goal's area that the block covers."""
    area = sum(4 * half[0] * half[1] for _, half in BOXES)
    return sum(_common_area(a, b) for a in outline(pose) for b in outline(goal_pose())) / area


def _common_area(subject: np.ndarray, window: np.ndarray) -> float:
    """Area of the intersection of two convex polygons [n, 2], counter-clockwise: one is clipped by the other."""
    points = [tuple(point) for point in subject]
    for (x0, y0), (x1, y1) in zip(window, np.roll(window, -1, 0), strict=True):
        sides = [(x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) for x, y in points]
        kept = []
        for n, (point, side) in enumerate(zip(points, sides, strict=True)):
            before, other = points[n - 1], sides[n - 1]
            if (side < 0) != (other < 0):
                share = other / (other - side)
                kept.append((before[0] + share * (point[0] - before[0]), before[1] + share * (point[1] - before[1])))
            if side >= 0:
                kept.append(point)
        points = kept
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(points, points[1:] + points[:1], strict=True)) / 2


def table_xml() -> str:
    """MJCF of the table, x to the right and y to the back, with the camera "top"."""
    boxes = "".join(f'<geom class="block" type="box" pos="{m[0]} {m[1]} .01" size="{h[0]} {h[1]} .01"/>'
                    for m, h in BOXES)
    marks = "".join(f'<geom class="mark" type="box" pos="{m[0]} {m[1]} .0005" size="{h[0]} {h[1]} .0005"/>'
                    for m, h in BOXES)
    x, y, angle = goal_pose()
    turn = f"{np.cos(angle / 2)} 0 0 {np.sin(angle / 2)}"
    walls = "".join(f'<geom class="wall" type="box" pos="{px} {py} .01" size="{sx} {sy} .01"/>' for px, py, sx, sy in (
        (-0.005, SIDE / 2, 0.01, SIDE / 2), (SIDE + 0.005, SIDE / 2, 0.01, SIDE / 2),
        (SIDE / 2, -0.005, SIDE / 2, 0.01), (SIDE / 2, SIDE + 0.005, SIDE / 2, 0.01)))
    slides = "".join(f'<joint type="slide" axis="{axis}" damping="{{}}"/>' for axis in ("1 0 0", "0 1 0"))
    motors = "".join(f'<position joint="disc_{axis}" kp="{STIFFNESS * MASS}"/>' for axis in "xy")
    disc = "".join(f'<joint name="disc_{name}" type="slide" axis="{axis}" damping="{DAMPING * MASS}" limited="true" '
                   f'range="{PUSHER} {SIDE - PUSHER}"/>' for name, axis in (("x", "1 0 0"), ("y", "0 1 0")))
    return f"""<mujoco model="pusht"><option timestep="{TIMESTEP}" gravity="0 0 0" integrator="implicitfast"/>
      <visual><quality shadowsize="0" offsamples="0"/><headlight diffuse=".3 .3 .3" ambient=".6 .6 .6"/></visual>
      <default><default class="block"><geom mass=".01" rgba=".47 .53 .6 1" contype="1" conaffinity="6"/></default>
      <default class="mark"><geom rgba=".56 .93 .56 1" contype="0" conaffinity="0"/></default>
      <default class="wall"><geom rgba=".6 .6 .6 1" contype="4" conaffinity="1"/></default></default>
      <worldbody><camera name="top" pos="{SIDE / 2} {SIDE / 2} 1" xyaxes="1 0 0 0 1 0" fovy="29.4"/>
      <geom type="plane" size="1 1 .1" rgba="1 1 1 1" contype="0" conaffinity="0"/>{walls}
      <body pos="{x} {y} 0" quat="{turn}">{marks}</body>
      <body name="disc">{disc}<geom type="cylinder" size="{PUSHER} .01" pos="0 0 .01" mass="{MASS}"
      rgba=".25 .4 .9 1" contype="2" conaffinity="1"/></body>
      <body name="block">{slides.format(2, 2)}<joint type="hinge" axis="0 0 1" damping=".005"/>{boxes}</body>
      </worldbody><actuator>{motors}</actuator></mujoco>"""
