"""`dforce sample image`: images of chosen classes, from several models in the same noise, side by side and judged."""

from typing import Any

from dforce.config import read
from dforce.images.sampling import ImageSampling
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Draws from every checkpoint; samples.npz, a picture, results.json, episodes.jsonl and the table."""
    sampling = read(cfg, ImageSampling, trust=cfg["trust"])
    with call.folder() as folder:
        sampling.run(folder)
