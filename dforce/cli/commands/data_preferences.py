"""`dforce data preferences`: preferences about pictures in public layouts, as the files that learning reads."""

from typing import Any

from dforce.config import read
from dforce.images.preference_data import PreferenceData
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Reads; pairs.npz or ratings.npz goes into the run folder."""
    data = read(cfg, PreferenceData)
    with call.folder() as folder:
        data.run(folder)
