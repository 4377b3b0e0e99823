"""Random mazes as maps of the Doom engine: a grid of open cells, written as UDMF text in a WAD file.

ZDoom builds the nodes of a text map itself, so that a map is a list of walls. The textures are Freedoom's (BSD
licence), which comes with ViZDoom.
"""
from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

CELL = 192.0  # side of a cell in map units; the player is 32 wide, and in narrower cells walls fill the view
HEIGHT = 128  # of the ceiling, in map units
# Wall textures that are easy to tell apart at 32 pixels, the most distinct first.
WALLS = ("REDWALL1", "COMPBLUE", "TEKGREN2", "WOOD8", "SHAWN2", "BRICK7", "SP_HOT1", "MARBLE1", "STUCCO3", "ICKWALL3",
         "BLAKWAL1", "TANROCK2", "BIGBRIK1", "METAL", "GSTONE1", "ZIMMER2")
FLOORS = ("FLOOR0_1", "FLAT5_4", "GRASS1", "FLOOR7_1", "MFLR8_1", "FLAT1")
CEILINGS = ("CEIL3_5", "FLAT20", "CEIL5_1", "FLAT10", "FLOOR6_1", "CEIL1_1")


class DoomMaze(NamedTuple):
    """A maze with its textures. Cell (r, c) covers x in [c, c + 1] * CELL and y in [r, r + 1] * CELL.

    open_cells: [R, C] bool, the outermost cells closed. zone: [R, C] the texture of a cell, an index of `walls`. start:
    (row, column) of the player. angle: its direction, in degrees from +x counter-clockwise.
    """

    open_cells: np.ndarray
    zone: np.ndarray
    walls: tuple[str, ...]
    floor: str
    ceiling: str
    start: tuple[int, int]
    angle: float


def random_maze(rng: np.random.Generator, *, rooms: int = 4, zones: int = 4, textures: int = 6, floors: int = 1,
                loops: float = 0.3) -> DoomMaze:
    """A maze of rooms x rooms cells joined by cells, all of it connected.

    A random spanning tree (depth first). Each wall that it leaves is opened with probability `loops`, which makes
    circular ways. zones: number of parts of the maze with one wall texture each, the cells nearest to a random point.
    textures, floors: the first so many of WALLS, and of FLOORS and CEILINGS, are drawn from. ValueError out of range.
    """
    if not (rooms >= 2 and 1 <= zones <= textures <= len(WALLS) and 1 <= floors <= len(FLOORS) and 0 <= loops <= 1):
        raise ValueError(f"want rooms >= 2, 1 <= zones <= textures <= {len(WALLS)}, 1 <= floors <= {len(FLOORS)} "
                         f"and loops in [0, 1], got rooms={rooms}, zones={zones}, textures={textures}, "
                         f"floors={floors}, loops={loops}")
    size = 2 * rooms + 1
    open_cells = np.zeros((size, size), bool)
    _carve(open_cells, rng)
    inner = np.zeros_like(open_cells)
    inner[1:-1, 1:-1] = True
    row, column = np.indices(open_cells.shape)
    between = inner & ~open_cells & ((row + column) % 2 == 1)  # walls between two rooms
    open_cells |= between & (rng.random(open_cells.shape) < loops)
    centres = rng.uniform(0, size, (zones, 2))
    zone = np.argmin((row[..., None] - centres[:, 0]) ** 2 + (column[..., None] - centres[:, 1]) ** 2, -1)
    walls = tuple(str(name) for name in rng.permutation(WALLS[:textures])[:zones])
    i, j = (int(cell) for cell in 1 + 2 * rng.integers(rooms, size=2))
    return DoomMaze(open_cells, zone, walls, FLOORS[rng.integers(floors)], CEILINGS[rng.integers(floors)],
                    (i, j), float(90 * rng.integers(4)))


def _carve(open_cells: np.ndarray, rng: np.random.Generator) -> None:
    """Opens rooms (odd rows and columns) and the walls between them along a random depth-first tree, in place."""
    stack = [(1, 1)]
    open_cells[1, 1] = True
    while stack:
        r, c = stack[-1]
        ways = [(dr, dc) for dr, dc in ((0, 2), (2, 0), (0, -2), (-2, 0))
                if 0 < r + dr < len(open_cells) and 0 < c + dc < len(open_cells) and not open_cells[r + dr, c + dc]]
        if not ways:
            stack.pop()
            continue
        dr, dc = ways[rng.integers(len(ways))]
        open_cells[r + dr // 2, c + dc // 2] = open_cells[r + dr, c + dc] = True
        stack.append((r + dr, c + dc))


def wad(maze: DoomMaze) -> bytes:
    """A PWAD file that holds the maze as MAP01."""
    body, directory = b"", b""
    for name, data in ((b"MAP01", b""), (b"TEXTMAP", udmf(maze).encode()), (b"ENDMAP", b"")):
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name)
        body += data
    return struct.pack("<4sii", b"PWAD", 3, 12 + len(body)) + body + directory


def udmf(maze: DoomMaze) -> str:
    """The map as UDMF text: one sector, a one-sided wall wherever an open cell meets a closed one."""
    vertices: dict[tuple[float, float], int] = {}
    lines: list[str] = []
    sides: list[str] = []
    for r, c in np.argwhere(maze.open_cells):
        west, east, south, north = CELL * c, CELL * (c + 1), CELL * r, CELL * (r + 1)
        # the open side of a wall is to its right
        for dr, dc, begin, end in ((1, 0, (west, north), (east, north)), (0, 1, (east, north), (east, south)),
                                   (-1, 0, (east, south), (west, south)), (0, -1, (west, south), (west, north))):
            if maze.open_cells[r + dr, c + dc]:
                continue
            v1, v2 = (vertices.setdefault(point, len(vertices)) for point in (begin, end))
            lines.append(_block("linedef", v1=v1, v2=v2, sidefront=len(sides), blocking=True))
            sides.append(_block("sidedef", sector=0, texturemiddle=maze.walls[maze.zone[r, c]]))
    row, column = maze.start
    player = _block("thing", x=CELL * (column + 0.5), y=CELL * (row + 0.5), angle=round(maze.angle), type=1,
                    single=True, **{f"skill{i}": True for i in range(1, 6)})
    sector = _block("sector", heightfloor=0, heightceiling=HEIGHT, texturefloor=maze.floor, textureceiling=maze.ceiling,
                    lightlevel=224)
    corners = [_block("vertex", x=float(x), y=float(y)) for x, y in vertices]
    return "\n".join(['namespace = "zdoom";', player, *corners, *lines, *sides, sector]) + "\n"


def _block(kind: str, **fields: object) -> str:
    def text(value: object) -> str:
        return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)

    return f"{kind} {{ {' '.join(f'{key} = {text(value)};' for key, value in fields.items())} }}"
