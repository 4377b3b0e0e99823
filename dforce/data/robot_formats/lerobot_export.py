"""Any data set that is read as Episodes, written in LeRobot's layout."""

from dataclasses import dataclass, field
from pathlib import Path

from dforce.data.episodes import first_episodes
from dforce.data.load import load_episodes
from dforce.data.robot_formats.lerobot_films import Pictures
from dforce.data.robot_formats.lerobot_writer import write_lerobot


@dataclass(frozen=True)
class LeRobotExport:
    """Settings of `dforce data lerobot`. The keys are explained in configs/verbs/data/lerobot.yaml."""

    data: str
    to: str
    subset: str | None = None
    episodes: int | None = None
    infos: tuple[str, ...] = field(default=())
    fps: float | None = None
    pictures: Pictures = "lossless"
    file_mb: float = 200

    def write(self) -> Path:
        """Reads and writes; returns the new folder. ValueError where it exists, or the data cannot be read."""
        episodes = load_episodes(self.data, infos=self.infos, subset=self.subset)
        if self.episodes is not None and self.episodes < len(episodes):
            episodes = first_episodes(episodes, self.episodes)
        return write_lerobot(self.to, episodes, fps=self.fps, pictures=self.pictures, file_mb=self.file_mb)
