"""`dforce data lerobot`: a data set of any kind in LeRobot's layout, and its first episode as it is read back."""

from typing import Any

from dforce.config import read
from dforce.data.robot_formats.lerobot_export import LeRobotExport
from dforce.runs.episode_report import EpisodeReport
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Writes the data set; the page shows its first episode."""
    export = read(cfg, LeRobotExport)
    with call.folder() as folder:
        written = export.write()
        report = EpisodeReport(str(written), infos=export.infos)
        print(report.write(folder, report.load(), before=f"Written and read back as the LeRobot data set {written}. "))
        print(f"to learn from it: dforce imitate data={written}")
