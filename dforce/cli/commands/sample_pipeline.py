"""`dforce sample pipeline`: images of prompts from a pretrained pipeline, and from what was tuned of it."""

from typing import Any

from dforce.config import read
from dforce.images.pipeline_sampling import PipelineSampling, write_samples
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Draws from the pipeline, and with lora= from the tuned one in the same noise; images, a picture, the page."""
    sampling = read(cfg, PipelineSampling, trust=cfg["trust"])
    prepared = sampling.prepare()
    with call.folder() as folder:
        write_samples(sampling, prepared, folder)
