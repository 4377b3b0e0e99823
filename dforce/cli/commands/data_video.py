"""`dforce data video`: clips of generated mazes or bouncing balls, and a page that shows them."""

from typing import Any

from dforce.config import read
from dforce.data.generate.video import ClipGeneration
from dforce.runs.folder import Invocation
from dforce.video.clip_report import generate_clips


def run(cfg: Any, call: Invocation) -> None:
    """Makes the clips that are not there yet, measures them and shows some."""
    generation = read(cfg, ClipGeneration)
    with call.folder(resume=cfg["resume"]) as folder:
        generate_clips(generation, folder)
