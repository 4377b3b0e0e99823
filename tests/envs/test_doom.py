"""Mazes of the Doom engine: the map by its geometry, the engine by laws (a full turn shows the first frame again)."""

from __future__ import annotations

import os
import re
import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dforce.data import VideoClips
from dforce.data.generate.video import bouncing_balls, doom
from dforce.envs.doom.map import CELL, FLOORS, WALLS, random_maze, udmf, wad
from dforce.envs.doom.walker import FORWARD, LEFT, RIGHT, TURN, DoomWalker, explore, walk


@pytest.fixture(autouse=True)
def hermetic(tmp_path, monkeypatch):
    monkeypatch.setenv("DFORCE_CACHE", str(tmp_path / "cache"))


def walls_of(text: str) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The walls of a map, from corner to corner."""
    corners = [(float(x), float(y)) for x, y in re.findall(r"vertex \{ x = ([\d.]+); y = ([\d.]+);", text)]
    lines = re.findall(r"linedef \{ v1 = (\d+); v2 = (\d+);", text)
    return [(corners[int(a)], corners[int(b)]) for a, b in lines]


@pytest.mark.parametrize("seed", range(4))
def test_a_maze_is_connected_closed_and_has_its_zones(seed):
    maze = random_maze(np.random.default_rng(seed), rooms=5, zones=3, textures=7, floors=2)
    free = maze.open_cells
    assert not (free[0].any() or free[-1].any() or free[:, 0].any() or free[:, -1].any())
    reached, front = {maze.start}, [maze.start]
    while front:
        r, c = front.pop()
        for cell in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
            if free[cell] and cell not in reached:
                reached.add(cell)
                front.append(cell)
    assert len(reached) == free.sum() and free[1::2, 1::2].all()
    assert len(set(maze.walls)) == 3 and set(maze.walls) <= set(WALLS[:7]) and maze.floor in FLOORS[:2]
    assert maze.zone.max() < 3


def test_walls_stand_between_open_and_closed_cells_and_face_the_open_one():
    maze = random_maze(np.random.default_rng(0))
    free, text = maze.open_cells, udmf(maze)
    walls = walls_of(text)
    padded = free.astype(int)
    assert len(walls) == np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum()
    for (x1, y1), (x2, y2) in walls:
        middle, right = np.array([x1 + x2, y1 + y2]) / 2, np.array([y2 - y1, x1 - x2]) / 2
        inside, outside = (np.floor((middle + side * right) / CELL).astype(int) for side in (1, -1))
        assert free[inside[1], inside[0]] and not free[outside[1], outside[0]]
    assert Counter(a for a, _ in walls) == Counter(b for _, b in walls)  # they close
    assert text.count("sidedef {") == len(walls) and text.count("thing {") == 1


def test_the_file_is_a_pwad_with_one_text_map():
    maze = random_maze(np.random.default_rng(1))
    data = wad(maze)
    kind, count, place = struct.unpack_from("<4sii", data)
    lumps = {}
    for i in range(count):
        start, size, name = struct.unpack_from("<ii8s", data, place + 16 * i)
        lumps[name.rstrip(b"\0").decode()] = data[start : start + size].decode()
    assert kind == b"PWAD" and list(lumps) == ["MAP01", "TEXTMAP", "ENDMAP"] and lumps["TEXTMAP"] == udmf(maze)
    with pytest.raises(ValueError, match="zones=5, textures=4"):
        random_maze(np.random.default_rng(0), zones=5, textures=4)


def test_the_policy_turns_away_from_walls_and_visits_the_maze():
    """Walked without the engine: forward is a sixth of a cell, walls stop it."""
    rng = np.random.default_rng(0)
    maze = random_maze(rng, rooms=3)
    policy, pose = explore(maze, rng), np.array([maze.start[1] + 0.5, maze.start[0] + 0.5, maze.angle])
    next(policy)
    seen, taken, facing = set(), [], 0
    for _ in range(4000):
        action = policy.send(pose.copy())
        taken.append(action)
        if action == FORWARD:
            angle = np.deg2rad(pose[2])
            to = pose[:2] + np.array([np.cos(angle), np.sin(angle)]) / 6
            if maze.open_cells[int(to[1]), int(to[0])]:
                pose[:2] = to
            else:
                facing += 1
        else:
            pose[2] = (pose[2] + (TURN if action == LEFT else -TURN)) % 360
        seen.add((int(pose[1]), int(pose[0])))
    assert facing < 0.02 * len(taken)  # hardly ever into a wall
    assert len(seen) > 0.6 * maze.open_cells.sum()
    assert min(Counter(taken).values()) > 0.1 * len(taken)


@pytest.fixture(scope="module")
def walker():
    pytest.importorskip("vizdoom")
    with DoomWalker(random_maze(np.random.default_rng(3)), size=24) as walker:
        yield walker


def test_a_full_turn_shows_the_first_frame_again(walker):
    frame, pose = walker.reset()
    seen, angles = [frame], [pose[2]]
    for _ in range(32):
        turned, at = walker.step(LEFT)
        seen.append(turned)
        angles.append(at[2])
    assert frame.shape == (24, 24, 3) and frame.dtype == np.uint8
    np.testing.assert_allclose(np.diff(angles) % 360, TURN, atol=1e-3)
    np.testing.assert_array_equal(seen[32], seen[0])
    assert np.abs(seen[8].astype(int) - seen[0]).mean() > 2
    back, _ = walker.step(RIGHT)
    np.testing.assert_array_equal(back, seen[31])  # right undoes left


def test_forward_goes_where_it_looks_until_a_wall(walker):
    _, pose = walker.reset()
    way = np.array([np.cos(np.deg2rad(pose[2])), np.sin(np.deg2rad(pose[2]))])
    poses = [pose] + [walker.step(FORWARD)[1] for _ in range(60)]
    moved = np.diff(np.stack(poses)[:, :2], axis=0)
    assert (moved @ way >= -1e-4).all() and (moved @ way).max() == pytest.approx(1 / 6, abs=0.02)
    assert np.abs(moved - (moved @ way)[:, None] * way).max() < 2e-3  # straight ahead
    assert np.hypot(*moved[-1]) < 1e-3  # and stopped
    last = poses[-1][:2] + 0.2 * way
    assert not walker.maze.open_cells[int(last[1]), int(last[0])]
    with pytest.raises(ValueError, match="got 3"):
        walker.step(3)


def test_actions_led_to_their_frames_and_seeds_decide(walker):
    films = [list(walk(walker, clips=2, frames=40, rng=np.random.default_rng(5))) for _ in range(2)]
    for one, two in zip(*films, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    first, second = films[0]
    turned = np.diff(np.concatenate([first.pose, second.pose])[:, 2])
    turned = (turned + 180) % 360 - 180
    action = np.concatenate([first.actions, second.actions])[1:]
    np.testing.assert_allclose(turned, np.where(action == LEFT, TURN, np.where(action == RIGHT, -TURN, 0)), atol=1e-2)


def engines() -> int:
    """Engine processes that this process has."""
    count = 0
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, parent = re.match(r"\d+ \((.*)\) \S (\d+)", place.read_text()).groups()
        except OSError:
            continue
        count += name.startswith("vizdoom") and int(parent) == os.getpid()
    return count


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_the_engine_is_closed_on_errors_and_leaves_nothing_behind(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    monkeypatch.chdir(tmp_path)
    before = engines()
    with pytest.raises(RuntimeError, match="mine"), DoomWalker(random_maze(np.random.default_rng(0)), size=8) as walker:
        walker.reset()
        assert engines() == before + 1
        raise RuntimeError("mine")
    assert engines() == before and not list(tmp_path.iterdir())


def test_without_the_engine_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(ModuleNotFoundError, match=r"dforce\[doom\]"):
        DoomWalker(random_maze(np.random.default_rng(0)))


@pytest.mark.slow
def test_data_sets_go_on_where_they_stopped(tmp_path, monkeypatch):
    pytest.importorskip("vizdoom")
    settings = {"mazes": 2, "test_mazes": 1, "clips": 2, "frames": 12, "size": 8, "rooms": 2, "zones": 2}
    assert list(doom(tmp_path / "whole", **settings)) == [12] * 4
    partial = doom(tmp_path / "cut", **settings)
    assert [next(partial) for _ in range(3)] == [12] * 3
    partial.close()  # in the middle of the second maze
    assert [p.name for p in sorted((tmp_path / "cut").rglob("maze_*"))] == ["maze_0000"]
    assert list(doom(tmp_path / "cut", **settings)) == [12] * 2 and list(doom(tmp_path / "cut", **settings)) == []
    for file in sorted((tmp_path / "whole").rglob("*.npz")):
        with np.load(file) as one, np.load(tmp_path / "cut" / file.relative_to(tmp_path / "whole")) as two:
            assert all(np.array_equal(one[key], two[key]) for key in ("video", "actions", "pose"))
    clips = VideoClips(tmp_path / "cut", frames=6, batch=2)
    assert clips.event_shape == (3, 8, 8) and clips.action_width == 3 and len(clips.clips) == 2
    with pytest.raises(ValueError, match="made otherwise .seed differ"):
        next(doom(tmp_path / "cut", **settings, seed=1))


def test_balls_as_a_data_set(tmp_path):
    made = list(bouncing_balls(tmp_path, clips=5, test_clips=2, frames=9, size=12, balls=2, shard_clips=3))
    assert sum(made) == 7 * 9
    train, test = (VideoClips(tmp_path, frames=3, split=split) for split in ("train", "val"))
    assert len(train.clips) == 5 and len(test.clips) == 2 and train.event_shape == (3, 12, 12)
    assert train.poses([4], frames=9).shape == (1, 9, 8)
    videos = [clip.read(np.arange(9)) for clip in train.clips + test.clips]
    assert len({video.tobytes() for video in videos}) == 7
    (tmp_path / "about.json").unlink()
    with pytest.raises(ValueError, match="not made here"):
        next(bouncing_balls(tmp_path))


@pytest.mark.slow
def test_the_verb_makes_clips_a_page_and_results(tmp_path, monkeypatch, capsys):
    from dforce.cli.main import main
    from dforce.report.rows import read_results

    monkeypatch.chdir(tmp_path)
    words = ["data", "video", "source=balls", "fast_dev_run=true", "out=set"]
    assert main(words) == 0, capsys.readouterr().err
    assert "4 clips, 96 frames in set" in capsys.readouterr().out
    rows = {(row["method"], row["metric"]): row["value"] for row in read_results("set/results.json").rows}
    assert rows["train", "frames"] == rows["val", "frames"] == 48 and rows["all", "generated"] > 0
    clips = VideoClips("set", frames=24)
    measured = clips.statistics()
    assert rows["train", "brightness"] == pytest.approx(measured["brightness"], abs=1e-5)
    assert {p.name for p in Path("set/media").iterdir()} >= {"contact_sheet.png", "captions.json"}
    assert main(words) == 2 and "has content" in capsys.readouterr().err
    assert main([*words, "resume=true"]) == 0 and "all of them were there" in capsys.readouterr().out
    assert main(["data", "video", "source=bals"]) == 2 and "balls" in capsys.readouterr().err


def test_all_textures_and_flats_exist():
    """Names of the patches in Freedoom's own tables; a missing one would be drawn as a checkerboard."""
    vizdoom = pytest.importorskip("vizdoom")
    from dforce.envs.doom.map import CEILINGS

    data = (Path(vizdoom.__file__).parent / "freedoom2.wad").read_bytes()
    _, count, place = struct.unpack_from("<4sii", data)
    lumps, textures = {}, set()
    for i in range(count):
        start, size, name = struct.unpack_from("<ii8s", data, place + 16 * i)
        lumps[name.rstrip(b"\0").decode()] = start, size
    for table in ("TEXTURE1", "TEXTURE2"):
        start, _ = lumps.get(table, (0, 0))
        for i in range(struct.unpack_from("<i", data, start)[0] if start else 0):
            at = start + struct.unpack_from("<i", data, start + 4 + 4 * i)[0]
            textures.add(data[at : at + 8].rstrip(b"\0").decode())
    assert set(WALLS) <= textures and set(FLOORS + CEILINGS) <= set(lumps)
