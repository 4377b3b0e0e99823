"""A robot whose cameras see where a square is: a task for policies from pictures, cheap enough for tests."""

from __future__ import annotations

import numpy as np

from dforce.data.episodes import Episodes, pack

SIDE, STEPS = 16, 8


def picture(place: float, shade: int = 60) -> np.ndarray:
    """uint8 [16, 16, 3], grey but for a red square at `place` in 0..1 along the width."""
    seen = np.full((SIDE, SIDE, 3), shade, np.uint8)
    left = round(place * (SIDE - 4))
    seen[6:10, left:left + 4] = (220, 30, 30)
    return seen


def filmed(count: int = 12, *, cameras: tuple[str, ...] = ("left", "right"), proprio: bool = True) -> Episodes:
    """Episodes in which the square moves at a speed of its own, and the action is where it stands."""
    rng = np.random.default_rng(0)
    o, a, images = [], [], {name: [] for name in cameras}
    for _ in range(count):
        place = np.clip(rng.uniform(0, 1) + rng.uniform(-0.1, 0.1) * np.arange(STEPS + 1), 0, 1)
        shade = int(rng.integers(30, 90))
        o.append(np.stack([np.arange(STEPS + 1) / STEPS], 1)[:, :proprio])
        a.append(place[:-1, None])
        for number, name in enumerate(cameras):
            images[name].append(np.stack([picture(abs(number - each), shade) for each in place]))
    names = ["observation.joint[0]"] if proprio else []
    return pack(o, a, [np.zeros(STEPS)] * count, images=images, about={"observation_names": names})
