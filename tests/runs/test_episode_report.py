"""The page of an episode: cameras of any sizes side by side."""

import imageio.v3 as imageio
import numpy as np

from dforce.data.episodes import Episodes
from dforce.runs.episode_report import EpisodeReport
from dforce.runs.folder import RunFolder


def test_cameras_of_other_shapes_are_filmed_side_by_side(tmp_path):
    steps, draw = 4, np.random.default_rng(0)
    images = {name: np.full((steps + 1, *size, 3), 20, np.uint8) for name, size in
              (("front", (48, 64)), ("wrist", (90, 120)))}
    episodes = Episodes(draw.normal(size=(steps + 1, 2)), draw.normal(size=(steps, 3)), np.zeros(steps),
                        np.zeros(steps, bool), np.arange(steps) == steps - 1, np.array([steps]), images=images)
    with RunFolder("report/episode", {}, out=tmp_path / "page") as folder:
        EpisodeReport("data").write(folder, episodes)
    frame = imageio.imread(tmp_path / "page" / "media" / "film.mp4", index=0)
    assert frame.shape == (240, 320 + 240, 3)  # 5 and 2 times as large
    assert frame[:180].mean() < 40 and frame[200:, 330:].mean() > 230  # white below the lower one
