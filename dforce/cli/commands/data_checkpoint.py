"""`dforce data checkpoint`: a video model of the Diffusion Forcing repository as a run that every command takes."""

from typing import Any

from dforce.config import read
from dforce.runs.folder import Invocation
from dforce.video.official import OfficialVideo


def run(cfg: Any, call: Invocation) -> None:
    """Reads the file, of which nothing runs, and writes a sealed checkpoint."""
    official = read(cfg, OfficialVideo)
    with call.folder() as folder:
        said = official.write(folder.path)
        folder.results([], summary=said)
        print(f"{said}\nroll it out: dforce rollout checkpoint={folder.path} data=CLIPS")
