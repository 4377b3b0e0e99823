"""A planned expert of PushT: of many short pushes, each tried in a copy of the simulation, the best is carried out."""
from collections.abc import Iterator

import mujoco
import numpy as np

from .pusht_block import BOXES, PUSHER, SIDE, SUBSTEPS, coverage, goal_pose, outline

GAP = 0.004             # m between disc and block before a push
TURNS = np.deg2rad([-30, 0, 30])  # directions of a push, from the side's normal
PACES = 0.005, 0.02     # m a step
LENGTH = 8              # steps of a push at most
BACK = 2                # steps in which the disc goes back after it
RING = 0.11             # m from the block's middle at which the disc goes around it
STRIDE = 0.06           # m a step when nothing is pushed
PATIENCE = 8            # steps that are waited for the disc to stand still


def error(pose: np.ndarray) -> float:
    """Root mean square distance of the block's corners from their goals, in metres."""
    return float(np.sqrt(np.mean((np.concatenate(outline(pose)) - np.concatenate(outline(goal_pose()))) ** 2) * 2))


def contacts() -> list[tuple[np.ndarray, np.ndarray]]:
    """Places of the disc [2] at which it nearly touches the block, and directions of pushes [2], in its frame."""
    out = []
    for middle, half in BOXES:
        for axis in (0, 1):
            for sign in (-1, 1):
                normal = np.eye(2)[axis] * sign
                along = np.eye(2)[1 - axis] * half[1 - axis]
                for share in (-0.9, -0.5, 0, 0.5, 0.9) if half[1 - axis] > 0.02 else (-0.6, 0.6):
                    place = middle + normal * (half[axis] + PUSHER + GAP) + share * along
                    if clearance(place) > PUSHER + GAP / 2:
                        out += [(place, -rotated(normal, turn)) for turn in TURNS]
    return out


def clearance(place: np.ndarray) -> float:
    """Distance of a point in the block's frame from the block."""
    return min(float(np.linalg.norm(np.maximum(np.abs(place - middle) - half, 0))) for middle, half in BOXES)


def rotated(vector: np.ndarray, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([cosine * vector[0] - sine * vector[1], sine * vector[0] + cosine * vector[1]])


def best_push(model: mujoco.MjModel, data: mujoco.MjData,
              scratch: mujoco.MjData) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Start [2], displacement a step [2] and steps of the push that lessens the error most; None where none does."""
    pose, disc = data.qpos[2:].copy(), data.qpos[:2].copy()
    best, chosen = error(pose) * 0.98, None
    for place, direction in contacts():
        start = pose[:2] + rotated(place, pose[2])
        if (start < PUSHER).any() or (start > SIDE - PUSHER).any():
            continue
        for pace in PACES if best < 0.02 else PACES[1:]:
            stride = rotated(direction, pose[2]) * pace
            for steps, result in enumerate(tried(model, scratch, pose, start, stride), 1):
                if result + 0.01 * best * np.linalg.norm(start - disc) < best:
                    best, chosen = result, (start, stride, steps)
    return chosen


def tried(model: mujoco.MjModel, scratch: mujoco.MjData, pose: np.ndarray, start: np.ndarray,
          stride: np.ndarray) -> Iterator[float]:
    """The error after 1, 2, ... steps of a push and going back; ends when it grows."""
    mujoco.mj_resetData(model, scratch)
    scratch.qpos[:] = [*start, *pose]
    before = np.inf
    for step in range(1, LENGTH + 1):
        scratch.ctrl[:] = start + stride * step
        mujoco.mj_step(model, scratch, SUBSTEPS)
        place, speed = scratch.qpos.copy(), scratch.qvel.copy()
        scratch.ctrl[:] = retreat(start, stride)
        mujoco.mj_step(model, scratch, BACK * SUBSTEPS)
        result = error(scratch.qpos[2:])
        yield result
        if result > before + 0.002:
            return
        before = min(before, result)
        scratch.qpos[:], scratch.qvel[:] = place, speed


def retreat(start: np.ndarray, stride: np.ndarray) -> np.ndarray:
    """Where the disc is sent after a push."""
    return np.clip(start - 0.03 * stride / np.linalg.norm(stride), PUSHER, SIDE - PUSHER)


def around(now: np.ndarray, target: np.ndarray) -> Iterator[np.ndarray]:
    """Waypoints to a target, straight where the block is not in the way, else along a ring around it. now: qpos [5]."""
    disc, middle, angle = now[:2], now[2:4], now[4]
    line = disc + np.linspace(0, 1, 20)[:, None] * (target - disc)
    if min(clearance(rotated(point - middle, -angle)) for point in line) > PUSHER + GAP / 2:
        yield target
        return
    first, last = (np.arctan2(*(point - middle)[::-1]) for point in (disc, target))
    turn = (last - first + np.pi) % (2 * np.pi) - np.pi
    for bow in np.linspace(0, turn, int(abs(turn) / 0.5) + 2):
        yield middle + RING * np.array([np.cos(first + bow), np.sin(first + bow)])
    yield target


def push_blocks(model: mujoco.MjModel, data: mujoco.MjData, wanted: float) -> Iterator[np.ndarray]:
    """Actions until the block covers as much of its goal as wanted, or no push helps. data: what the actions move."""
    scratch = mujoco.MjData(model)
    while coverage(data.qpos[2:]) <= wanted and (push := best_push(model, data, scratch)):
        start, stride, steps = push
        command = data.qpos[:2].copy()
        for waypoint in around(data.qpos.copy(), start):
            while (away := np.linalg.norm(waypoint - command)) > 1e-6:
                command = command + (waypoint - command) * min(1.0, STRIDE / away)
                yield command
        for _ in range(PATIENCE):
            if np.linalg.norm(data.qpos[:2] - start) < 0.001 and np.abs(data.qvel[:2]).max() < 0.01:
                break
            yield start
        for step in range(1, steps + 1):
            yield start + stride * step
        for _ in range(BACK):
            yield retreat(start, stride)
