"""`dforce report episode`: one episode of a data set, or of the data of a run, as a page."""

from typing import Any

from dforce.config import read
from dforce.runs.episode_report import EpisodeReport
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Reads the episode, then shows it."""
    report = read(cfg, EpisodeReport)
    episodes = report.load()
    with call.folder() as folder:
        print(report.write(folder, episodes))
