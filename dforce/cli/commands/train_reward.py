"""`dforce train reward`: preference pairs or ratings to a reward that the other verbs can ask."""

from typing import Any

from dforce.align.rewards.training import RewardTraining
from dforce.config import read
from dforce.images import load_classifier
from dforce.runs.folder import Invocation


def run(cfg: Any, call: Invocation) -> None:
    """Learns; the reward, what it got right on held-out data, and the pictures go into the run folder."""
    training = read(cfg, RewardTraining)
    with call.folder() as folder:
        training.run(folder, load_classifier)
