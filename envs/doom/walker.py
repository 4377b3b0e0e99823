"""First-person walks through generated mazes, rendered by ViZDoom without a screen: frames, actions and exact poses.

Three actions, as in TECO's DMLab data: turn left, turn right (both exactly `TURN` degrees), forward.
"""
from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .map import CELL, DoomMaze, wad

LEFT, RIGHT, FORWARD = 0, 1, 2
ACTIONS = ("turn left", "turn right", "forward")
TURN = 11.25  # degrees a frame; a multiple of the engine's unit, 1/65536 of a circle, so that 32 turns are exact
SETTLE = 10  # tics at the start of a map; the engine ignores some actions in the first 5
TICS = 2  # of the engine (35 a second) in a frame; a step forward is a sixth of a cell


class Walk(NamedTuple):
    """A clip of a walk.

    video: [T, size, size, 3] uint8. actions: [T] int64, action[t] led to frame t. pose: [T, 3] float32, x and y in
    cells and the angle in degrees [0, 360), counter-clockwise from +x.
    """

    video: np.ndarray
    actions: np.ndarray
    pose: np.ndarray


class DoomWalker:
    """The engine with one maze: `reset()` puts the walker at the start, `step(action)` moves it.

    size: of a frame, in pixels. A context manager: the engine is a process of its own, which ends with the block, also
    after an error. An engine with several mazes often crashes on closing, hence one maze each. Needs the package
    vizdoom (`dforce[doom]`).
    """

    def __init__(self, maze: DoomMaze, *, size: int = 64, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"size is that of a frame in pixels, got {size}")
        self.maze, self.size = maze, size
        self._resize = _area(120, size), _area(160, size)
        self._folder = tempfile.TemporaryDirectory(prefix="dforce-doom-")
        self._game: Any = None
        try:
            file = Path(self._folder.name) / "maze.wad"
            file.write_bytes(wad(maze))
            self._game = _game(file, seed, Path(self._folder.name))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> DoomWalker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the engine's process. May be called twice."""
        game, self._game = self._game, None
        try:
            if game is not None:
                game.close()
        finally:
            self._folder.cleanup()

    def reset(self) -> tuple[np.ndarray, np.ndarray]:
        """Puts the walker at the start of the maze. Returns (frame [size, size, 3] uint8, pose [3])."""
        self._game.new_episode()
        self._game.make_action([0.0, 1.0, 0.0], SETTLE)
        return self._see()

    def step(self, action: int) -> tuple[np.ndarray, np.ndarray]:
        """Moves the walker by one frame. Returns (frame, pose)."""
        if action not in (LEFT, RIGHT, FORWARD):
            raise ValueError(f"actions are 0 (turn left), 1 (turn right) and 2 (forward), got {action}")
        turn = {LEFT: -1.0, RIGHT: 1.0, FORWARD: 0.0}[action] * TURN / TICS
        self._game.make_action([float(action == FORWARD), 1.0, turn], TICS)
        return self._see()

    def _see(self) -> tuple[np.ndarray, np.ndarray]:
        state = self._game.get_state()
        if state is None:
            raise RuntimeError("the engine ended the episode by itself, which nothing in these maps should cause")
        x, y, angle = state.game_variables
        rows, columns = self._resize
        screen = state.screen_buffer.astype(np.float32)  # [120, 160, 3]
        frame = columns @ (rows @ screen.reshape(120, -1)).reshape(-1, 160, 3)
        return np.rint(frame).astype(np.uint8), np.array([x / CELL, y / CELL, angle % 360], np.float32)


def walk(walker: DoomWalker, *, clips: int, frames: int, rng: np.random.Generator) -> Iterator[Walk]:
    """Yields `clips` clips of `frames` frames each, cut from one long walk that `explore` steers."""
    frame, pose = walker.reset()
    action, policy = LEFT, explore(walker.maze, rng)  # no action led to the first frame: this one is arbitrary
    next(policy)
    for _ in range(clips):
        video, actions, poses = [], [], []
        for _ in range(frames):
            video.append(frame)
            actions.append(action)
            poses.append(pose)
            action = policy.send(pose)
            frame, pose = walker.step(action)
        yield Walk(np.stack(video), np.array(actions, np.int64), np.stack(poses))


def explore(maze: DoomMaze, rng: np.random.Generator) -> Generator[int, Any, None]:
    """A policy as a generator: send a pose, get an action.

    It goes forward for a while, turns by up to 90 degrees, and goes forward again. Close to a wall, or stuck, it turns
    to the side with more room until the way ahead is free. So views vary, and few show a wall alone.
    """
    action, left, before = FORWARD, 0, None
    pose = yield FORWARD
    while True:
        ahead = room_ahead(maze, pose, 0.0)
        stuck = before is not None and action == FORWARD and np.hypot(*(pose[:2] - before[:2])) < 0.01
        if (ahead < 0.7 or stuck) and (action == FORWARD or left <= 0):
            sides = room_ahead(maze, pose, 60.0), room_ahead(maze, pose, -60.0)
            action = LEFT if sides[0] + rng.normal(0, 0.5) > sides[1] else RIGHT
            left = int(rng.integers(3, 10))
        elif left <= 0:
            action = FORWARD if action != FORWARD else int(rng.integers(LEFT, RIGHT + 1))
            left = int(rng.integers(4, 16)) if action == FORWARD else int(rng.integers(1, 7))
        left, before = left - 1, pose
        pose = yield action


def room_ahead(maze: DoomMaze, pose: np.ndarray, turn: float) -> float:
    """Distance to the next wall, in cells, at most 4, in the direction `turn` degrees to the left of the pose's."""
    angle = np.deg2rad(pose[2] + turn)
    reach = np.arange(0.05, 4.0, 0.05)
    column = np.floor(pose[0] + reach * np.cos(angle)).astype(int)
    row = np.floor(pose[1] + reach * np.sin(angle)).astype(int)
    high, wide = maze.open_cells.shape
    free = maze.open_cells[row.clip(0, high - 1), column.clip(0, wide - 1)]
    return 4.0 if free.all() else float(reach[np.argmin(free)])


def _area(source: int, target: int) -> np.ndarray:
    """[target, source] float32: weights of a mean over the source pixels that a target pixel covers."""
    edge = np.arange(target + 1) * source / target
    pixel = np.arange(source)
    covered = np.minimum(edge[1:, None], pixel + 1) - np.maximum(edge[:-1, None], pixel)
    return (covered.clip(0) / (source / target)).astype(np.float32)


def _game(file: Path, seed: int, folder: Path) -> Any:
    """Starts the engine without window and sound, and with nothing on the screen but the maze."""
    try:
        import vizdoom
    except ImportError as error:
        raise ModuleNotFoundError("mazes are rendered by ViZDoom: pip install 'dforce[doom]'",
                                  name="vizdoom") from error
    game = vizdoom.DoomGame()
    game.set_doom_game_path(os.path.join(os.path.dirname(vizdoom.__file__), "freedoom2.wad"))
    game.set_doom_scenario_path(str(file))
    game.set_doom_config_path(str(folder / "engine.ini"))  # otherwise it writes one into the working folder
    game.set_doom_map("map01")
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    for kind in ("hud", "minimal_hud", "weapon", "crosshair", "decals", "particles", "effects_sprites", "messages",
                 "corpses", "screen_flashes"):
        getattr(game, f"set_render_{kind}")(False)
    game.set_available_buttons([getattr(vizdoom.Button, name) for name in
                                ("MOVE_FORWARD", "SPEED", "TURN_LEFT_RIGHT_DELTA")])
    game.set_available_game_variables([getattr(vizdoom.GameVariable, name) for name in
                                       ("POSITION_X", "POSITION_Y", "ANGLE")])
    game.set_episode_timeout(0)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_seed(seed)
    with contextlib.chdir(folder):  # the engine writes files into the folder that it is started in
        game.init()
    return game
